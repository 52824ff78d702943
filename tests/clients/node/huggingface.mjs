// One image classification by Hugging Face's JavaScript client. Arguments: URL, path of the image, JSON of parameters.
import { readFile } from "node:fs/promises";
import { InferenceClient } from "@huggingface/inference";

const [url, path, parameters] = process.argv.slice(2);
const data = new Blob([await readFile(path)], { type: "image/png" });
try {
  const client = new InferenceClient("hf_none").endpoint(url);
  // By itself it asks again for ever while it is answered 503.
  const answer = await client.imageClassification({ data, parameters: JSON.parse(parameters) }, { retry_on_error: false });
  console.log(JSON.stringify({ answer }));
} catch (error) {
  console.log(JSON.stringify({ kind: error.constructor.name, status: error.httpResponse?.status, message: error.message, body: error.httpResponse?.body }));
}
