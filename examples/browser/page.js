// Run the chosen ONNX file on the inputs of the text field, and show its outputs as JSON.

import { InferenceSession, Tensor, env } from "onnxruntime-web";
import { feedsOf, parseLists, printed } from "../node/tensors.js";

// More threads need a page that is served with COOP and COEP headers.
env.wasm.numThreads = 1;

const element = (id) => document.getElementById(id);

element("run").addEventListener("click", async () => {
  element("outputs").textContent = "";
  element("status").textContent = "running";
  try {
    element("outputs").textContent = await run(element("graph").files[0], element("inputs").value);
    element("status").textContent = "done";
  } catch (error) {
    element("status").textContent = `error: ${error.message ?? error}`;
  }
});

async function run(file, inputs) {
  if (!file) throw new Error("expected an ONNX file, found none: choose one");
  // The default options fuse the quantized MatMuls; a lower graphOptimizationLevel would not.
  const session = await InferenceSession.create(new Uint8Array(await file.arrayBuffer()));
  try {
    return printed(await session.run(feedsOf(session, parseLists(inputs), Tensor)));
  } finally {
    await session.release();
  }
}
