// One embeddings request by OpenAI's JavaScript client. Arguments: base URL, JSON of the request, retries.
import OpenAI from "openai";

const [url, request, retries] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: Number(retries) });
try {
  const answer = await client.embeddings.create(JSON.parse(request));
  const models = await client.models.list();
  console.log(JSON.stringify({ vectors: answer.data.map((one) => Array.from(one.embedding)), models: models.data.map((one) => one.id) }));
} catch (error) {
  console.log(JSON.stringify({ kind: error.constructor.name, status: error.status, code: error.code, message: error.message }));
}
