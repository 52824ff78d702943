// Code for the same request in other languages. Tests copy each snippet from the page and run it: those without a
// picture inside beside a photo.jpg.

/**
 * `named` is the model if the server has several, else empty: then no request has to name it. `inside` is base64 of
 * the picture if the code is to hold it.
 */
export function snippets({ base, op, topK, model, named, inside }) {
  const query = [op === "classify" && `top_k=${topK}`, named && `model=${named}`].filter(Boolean).join("&");
  const question = query ? `${op}?${query}` : op;
  return [curl, ours, huggingface, openai, triton, javascript].flatMap((make) => make({ base, op, topK, model, named, question, inside }) || []);
}

/** Python: the picture's bytes, and what they need before. */
const decoded = (inside) => `base64.b64decode("${inside}")`;
const importing = (inside) => (inside ? "import base64\n\n" : "");

const curl = ({ base, question, inside }) => ({
  name: "curl",
  needs: "",
  code: inside
    ? `base64 -d <<END | curl --data-binary @- '${base}/v1/${question}'
${inside}
END
`
    : `curl --data-binary @photo.jpg '${base}/v1/${question}'`,
});

const ours = ({ base, op, topK, named, inside }) => {
  const photo = inside ? "photo" : '"photo.jpg"';
  return {
    name: "Python",
    needs: "pip install ./client",
    code: `${importing(inside)}from vim_client import Client

${inside ? `photo = ${decoded(inside)}\n` : ""}with Client("${base}"${named ? `, model="${named}"` : ""}) as client:
    ${op === "classify"
      ? `for prediction in client.classify(${photo}, top_k=${topK}).predictions:
        print(prediction.label, prediction.score)`
      : `vector = client.embed(${photo})  # numpy, float32
    print(vector.shape)`}
`,
  };
};

const huggingface = ({ base, op, topK, named, inside }) => op === "classify" && ({
  name: "huggingface_hub",
  needs: "pip install huggingface_hub",
  code: `${importing(inside)}from huggingface_hub import InferenceClient

${inside ? `photo = ${decoded(inside)}\n` : ""}client = InferenceClient("${base}${named ? `/models/${named}` : ""}")
for found in client.image_classification(${inside ? "photo" : '"photo.jpg"'}, top_k=${topK}):
    print(found.label, found.score)
`,
});

const openai = ({ base, op, model, inside }) => op === "embed" && ({
  name: "openai",
  needs: "pip install openai",
  code: `${inside ? "" : "import base64\n\n"}from openai import OpenAI

client = OpenAI(base_url="${base}/v1", api_key="none")
${inside
    ? `image = "data:image/jpeg;base64,${inside}"`
    : `with open("photo.jpg", "rb") as file:
    image = "data:image/jpeg;base64," + base64.b64encode(file.read()).decode()`}
answer = client.embeddings.create(model="${model}", input=image)
print(len(answer.data[0].embedding))
`,
});

const triton = ({ base, op, topK, model, inside }) => ({
  name: "tritonclient",
  needs: "pip install tritonclient[http]",
  code: `${importing(inside)}import numpy as np
import tritonclient.http as triton

client = triton.InferenceServerClient("${base.replace(/^https?:\/\//, "")}"${base.startsWith("https") ? ", ssl=True" : ""})
image = triton.InferInput("image", [1, 1], "BYTES")
${inside
    ? `image.set_data_from_numpy(np.array([[${decoded(inside)}]], dtype=object))`
    : `with open("photo.jpg", "rb") as file:
    image.set_data_from_numpy(np.array([[file.read()]], dtype=object))`}
output = triton.InferRequestedOutput("${op === "classify" ? "scores" : "embedding"}"${op === "classify" ? `, class_count=${topK}` : ""})
answer = client.infer("${model}", [image], outputs=[output])
print(answer.as_numpy("${op === "classify" ? "scores" : "embedding"}"))
`,
});

const javascript = ({ base, op, question, inside }) => ({
  name: "JavaScript",
  needs: `Node 20 or later, as a module (${inside ? "ask" : "photo"}.mjs); a browser on another site needs CORS switched on.`,
  code: `${inside ? "" : 'import { readFile } from "node:fs/promises";\n\n'}const photo = ${inside ? `Buffer.from("${inside}", "base64")` : 'await readFile("photo.jpg")'};
const answer = await fetch("${base}/v1/${question}", { method: "POST", body: photo });
const { results } = await answer.json();
console.log(results[0].${op === "classify" ? "predictions" : "embedding.length"});
`,
});
