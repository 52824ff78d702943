// The same question from other programs. Tests copy each from the page and run it as it is, beside a photo.jpg.

export function snippets({ base, op, topK, model }) {
  const question = op === "classify" ? `classify?top_k=${topK}` : "embed";
  return [curl, javascript].flatMap((make) => make({ base, op, topK, model, question }) || []);
}

const curl = ({ base, question }) => ({
  name: "curl",
  needs: "",
  code: `curl --data-binary @photo.jpg '${base}/v1/${question}'`,
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
