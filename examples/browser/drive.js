// Use the page as a person would, in a Chromium without a screen: node drive.js URL CHROMIUM MODEL.onnx INPUTS.json
//
// Prints the page's outputs, or its error with exit code 1.

import { readFile } from "node:fs/promises";
import { chromium } from "playwright-core";

const [url, executablePath, graph, inputs] = process.argv.slice(2);
const browser = await chromium.launch({
  executablePath,
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking"],
});
try {
  const page = await browser.newPage();
  page.setDefaultTimeout(120_000);
  await page.goto(url);
  await page.setInputFiles("#graph", graph);
  await page.fill("#inputs", await readFile(inputs, "utf8"));
  await page.click("#run");
  await page.waitForFunction(() => /^(done|error)/.test(document.getElementById("status").textContent));
  const status = await page.textContent("#status");
  if (status === "done") console.log(await page.textContent("#outputs"));
  else {
    console.error(status);
    process.exitCode = 1;
  }
} finally {
  await browser.close();
}
