// Run an ONNX file: node run.js MODEL.onnx INPUTS.json
//
// INPUTS.json holds nested lists by input name, {"pixels": [[...], ...]}; the outputs are printed in the same form.

import { readFile } from "node:fs/promises";
import { InferenceSession, Tensor } from "onnxruntime-node";
import { feedsOf, parseLists, printed } from "./tensors.js";

async function main([graph, file]) {
  if (!graph || !file) throw new Error("expected MODEL.onnx and INPUTS.json: node run.js MODEL.onnx INPUTS.json");
  // The default options fuse the quantized MatMuls; a lower graphOptimizationLevel would not.
  const session = await InferenceSession.create(graph);
  const outputs = await session.run(feedsOf(session, parseLists(await readFile(file, "utf8")), Tensor));
  console.log(printed(outputs));
}

main(process.argv.slice(2)).catch((error) => {
  console.error(`error: ${error.message.replaceAll(/\s+/g, " ")}`);
  process.exitCode = 1;
});
