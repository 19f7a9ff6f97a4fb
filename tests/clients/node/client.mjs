// The official client for Node does its ordinary work. Reads the work as JSON from standard input, and writes what
// came of it as JSON to standard output; tests/integration/test_clients_node.py says what it has to be.
import { readFileSync } from "node:fs";
import OpenAI from "openai";

const work = JSON.parse(readFileSync(0, "utf8"));
// It asks again twice where it thinks it should, as it does for everybody.
const client = new OpenAI({ baseURL: `${work.url}/v1`, apiKey: work.key });

async function failed(call) {
  try {
    await call();
  } catch (error) {
    const { status, code, param, type, requestID, message } = error;
    return { kind: error.constructor.name, status, code, param, type, requestID, message };
  }
  throw new Error("no error was raised");
}

async function chats({ model, messages }) {
  const asked = { model, messages, temperature: 0, max_tokens: work.most };
  const whole = await client.chat.completions.create(asked);
  let streamed = "";
  for await (const chunk of await client.chat.completions.create({ ...asked, stream: true })) {
    streamed += chunk.choices[0]?.delta?.content ?? "";
  }
  let deltas = "";
  const helped = client.chat.completions.stream(asked).on("content", (delta) => (deltas += delta));
  return [whole.choices[0].message.content, streamed, await helped.finalContent(), deltas];
}

async function responses({ model, question }) {
  const asked = { model, input: question, temperature: 0, max_output_tokens: work.most };
  const whole = await client.responses.create(asked);
  let streamed = "";
  for await (const event of await client.responses.create({ ...asked, stream: true })) {
    if (event.type === "response.output_text.delta") streamed += event.delta;
  }
  const helped = await client.responses.stream(asked).finalResponse();
  return [whole.output_text, streamed, helped.output_text];
}

async function completions({ model, prompt }) {
  const asked = { model, prompt, temperature: 0, max_tokens: work.most, add_special_tokens: false };
  const whole = await client.completions.create(asked);
  let streamed = "";
  for await (const chunk of await client.completions.create({ ...asked, stream: true })) {
    streamed += chunk.choices[0]?.text ?? "";
  }
  return [whole.choices[0].text, streamed];
}

async function notes({ model, messages }) {
  const formed = { model, messages, temperature: 0, max_tokens: work.most, logit_bias: work.bias };
  const calling = { ...formed, tools: [work.tool], tool_choice: work.forced };
  const whole = await client.chat.completions.create(calling);
  const streamed = await client.chat.completions.stream(calling).finalChatCompletion();
  const form = { type: "json_schema", json_schema: work.form };
  const parsed = await client.chat.completions.parse({ ...formed, response_format: form });
  return [
    whole.choices[0].message.tool_calls[0].function.arguments,
    streamed.choices[0].message.tool_calls[0].function.arguments,
    parsed.choices[0].message.content,
  ];
}

const makes = {
  async done(one) {
    const texts = [...(await chats(one)), ...(await responses(one)), ...(await completions(one))];
    return { texts, notes: await notes(one) };
  },

  async wrong({ model, messages, question }) {
    return [
      await failed(() => client.chat.completions.create({ model, messages, temperature: -1 })),
      await failed(() => client.chat.completions.create({ model: "none", messages, stream: true })),
      await failed(() => client.responses.create({ model, input: question, previous_response_id: "r" })),
      await failed(() => client.embeddings.create({ model, input: "a" })),
    ];
  },

  async refused({ model, messages, question }) {
    const stranger = new OpenAI({ baseURL: `${work.url}/v1`, apiKey: "lethe-nobodys" });
    return [
      await failed(() => client.chat.completions.create({ model, messages })),
      await failed(() => client.chat.completions.create({ model, messages, stream: true })),
      await failed(() => client.chat.completions.stream({ model, messages }).finalContent()),
      await failed(() => client.responses.create({ model, input: question, stream: true })),
      await failed(() => stranger.models.list()),
    ];
  },

  async models() {
    const found = [];
    for await (const model of client.models.list()) found.push(model.id);
    return found;
  },
};

const results = [];
for (const one of work.cases) results.push(await makes[work.do](one));
process.stdout.write(JSON.stringify(results));
