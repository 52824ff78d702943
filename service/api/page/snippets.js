// Code for the same request in other languages. Tests copy each snippet from the page and run it beside a photo.jpg.

/** `named` is the model if the server has several, else empty: then no request has to name it. */
export function snippets({ base, op, topK, model, named }) {
  const query = [op === "classify" && `top_k=${topK}`, named && `model=${named}`].filter(Boolean).join("&");
  const question = query ? `${op}?${query}` : op;
  return [curl, ours, huggingface, openai, triton, javascript].flatMap((make) => make({ base, op, topK, model, named, question }) || []);
}

const curl = ({ base, question }) => ({
  name: "curl",
  needs: "",
  code: `curl --data-binary @photo.jpg '${base}/v1/${question}'`,
});

const ours = ({ base, op, topK, named }) => ({
  name: "Python",
  needs: "pip install ./client",
  code: `from vim_client import Client

with Client("${base}"${named ? `, model="${named}"` : ""}) as client:
    ${op === "classify"
    ? `for prediction in client.classify("photo.jpg", top_k=${topK}).predictions:
        print(prediction.label, prediction.score)`
    : `vector = client.embed("photo.jpg")  # numpy, float32
    print(vector.shape)`}
`,
});

const huggingface = ({ base, op, topK, named }) => op === "classify" && ({
  name: "huggingface_hub",
  needs: "pip install huggingface_hub",
  code: `from huggingface_hub import InferenceClient

client = InferenceClient("${base}${named ? `/models/${named}` : ""}")
for found in client.image_classification("photo.jpg", top_k=${topK}):
    print(found.label, found.score)
`,
});

const openai = ({ base, op, model }) => op === "embed" && ({
  name: "openai",
  needs: "pip install openai",
  code: `import base64

from openai import OpenAI

client = OpenAI(base_url="${base}/v1", api_key="none")
with open("photo.jpg", "rb") as file:
    image = "data:image/jpeg;base64," + base64.b64encode(file.read()).decode()
answer = client.embeddings.create(model="${model}", input=image)
print(len(answer.data[0].embedding))
`,
});

const triton = ({ base, op, topK, model }) => ({
  name: "tritonclient",
  needs: "pip install tritonclient[http]",
  code: `import numpy as np
import tritonclient.http as triton

client = triton.InferenceServerClient("${base.replace(/^https?:\/\//, "")}"${base.startsWith("https") ? ", ssl=True" : ""})
with open("photo.jpg", "rb") as file:
    image = triton.InferInput("image", [1, 1], "BYTES")
    image.set_data_from_numpy(np.array([[file.read()]], dtype=object))
output = triton.InferRequestedOutput("${op === "classify" ? "scores" : "embedding"}"${op === "classify" ? `, class_count=${topK}` : ""})
answer = client.infer("${model}", [image], outputs=[output])
print(answer.as_numpy("${op === "classify" ? "scores" : "embedding"}"))
`,
});

const javascript = ({ base, op, question }) => ({
  name: "JavaScript",
  needs: "Node 20 or later, as a module (photo.mjs); a browser on another site needs CORS switched on.",
  code: `import { readFile } from "node:fs/promises";

const answer = await fetch("${base}/v1/${question}", { method: "POST", body: await readFile("photo.jpg") });
const { results } = await answer.json();
console.log(results[0].${op === "classify" ? "predictions" : "embedding.length"});
`,
});
