// Reads a run at a gateway as the reference readers do, and prints the message that they build.
// Usage: node readers.mjs NODE_MODULES, with one job a line on standard input and one answer a line on standard output:
//   {"reader": "ai" | "assistant-stream-new" | "assistant-stream-old", "format", "url", "cut"}
// `cut` null reads in one go. A number of bytes breaks the connection there: "splice" goes on at that byte behind the
// back of the decoder, "replay" (of the AI SDK's transport) reconnects as useChat does after a reload, from the start.
import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";
import { resolve } from "node:path";

const load = (name) => import(pathToFileURL(resolve(process.argv[2], name)));
const ai = await load("ai/dist/index.mjs");
const libraries = {
  "assistant-stream-new": await load("assistant-stream-new/dist/index.js"),
  "assistant-stream-old": await load("assistant-stream-old/dist/index.js"),
};
const decoders = {
  "data-stream": "DataStreamDecoder",
  "assistant-transport": "AssistantTransportDecoder",
  "ui-message-stream": "UIMessageStreamDecoder",
  text: "PlainTextDecoder",
};

// The run's body; where `cut` is a number, its connection is broken there and the rest is asked for by offset.
async function open(url, cut) {
  const connection = new AbortController();
  const first = await fetch(url, { signal: connection.signal });
  if (first.status !== 200) throw new Error(`${first.status} ${await first.text()}`);
  if (cut === null) return first;
  const body = new ReadableStream({
    async start(controller) {
      try {
        let offset = 0;
        const reader = first.body.getReader();
        while (offset < cut) {
          const { done, value } = await reader.read();
          if (done) throw new Error(`the body ended at ${offset}, before the cut at ${cut}`);
          const part = value.subarray(0, cut - offset);
          offset += part.length;
          controller.enqueue(part);
        }
        await reader.cancel().catch(() => {});
        connection.abort();
        const query = new URLSearchParams({ offset, incarnation: first.headers.get("tailrace-incarnation") });
        const rest = await fetch(`${url}?${query}`);
        if (rest.status !== 200) throw new Error(`${rest.status} ${await rest.text()}`);
        for await (const part of rest.body) controller.enqueue(part);
        controller.close();
      } catch (error) {
        controller.error(error);
      }
    },
  });
  return new Response(body, { headers: first.headers });
}

async function last(messages) {
  let message = null;
  for await (const one of messages) message = one;
  return message;
}

// What useChat does: its transport, with a fetch that knows where the run is.
async function chat({ url, cut, resume }) {
  const errors = [];
  const transport = (from) => new ai.DefaultChatTransport({ api: url, fetch: () => open(url, from) });
  const read = (stream) => last(ai.readUIMessageStream({ stream, onError: (error) => errors.push(String(error)) }));
  if (resume === "replay") {
    const broken = await fetch(url);
    const reader = broken.body.getReader();
    for (let offset = 0; offset < cut; ) offset += (await reader.read()).value.length;
    await reader.cancel();
    return { message: await read(await transport(null).reconnectToStream({ chatId: "chat" })), errors };
  }
  const asked = { chatId: "chat", messages: [], trigger: "submit-message" };
  return { message: await read(await transport(cut).sendMessages(asked)), errors };
}

async function assistant({ reader, format, url, cut }) {
  const lib = libraries[reader];
  const response = await open(url, cut);
  const stream = response.body.pipeThrough(new lib[decoders[format]]());
  return { message: await lib.AssistantMessageStream.fromAssistantStream(stream).unstable_result(), errors: [] };
}

for await (const line of createInterface({ input: process.stdin })) {
  const job = JSON.parse(line);
  let answer;
  try {
    answer = await (job.reader === "ai" ? chat(job) : assistant(job));
  } catch (error) {
    answer = { message: null, errors: [String(error?.stack ?? error)] };
  }
  process.stdout.write(JSON.stringify(answer) + "\n");
}
