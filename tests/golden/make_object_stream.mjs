// Records anew what both reference versions write and read as object streams: reads object-stream.json, gives the same
// cases with fresh results. A case is batches of operations on an initial state, or bytes alone, good and bad.
// A stream is fed a line at a time, with turns of the event loop between.
// Usage: npm install old@npm:assistant-stream@0.3.15 new@npm:assistant-stream@0.3.44, then
//        node make_object_stream.mjs NODE_MODULES object-stream.json > fresh.json
import { readFileSync, writeSync } from "node:fs";
import { resolve } from "node:path";
import { pathToFileURL } from "node:url";

console.error = console.warn = () => {};
process.on("unhandledRejection", () => {});

const load = (name) => import(pathToFileURL(resolve(process.argv[2], name, "dist/index.js")));
const versions = { "0.3.15": await load("old"), "0.3.44": await load("new") };
const headers = { "Content-Type": "text/event-stream", "Assistant-Stream-Format": "object-stream/v0" };

const written = async ({ createObjectStream, ObjectStreamResponse }, { initial, batches }) => {
  const stream = () =>
    createObjectStream({
      defaultValue: initial,
      execute: (controller) => batches.forEach((batch) => controller.enqueue(batch)),
    });
  const bytes = Buffer.from(await new ObjectStreamResponse(stream()).arrayBuffer());
  const source = [];
  for await (const chunk of stream()) source.push(chunk);
  return { b64: bytes.toString("base64"), source };
};

const pieces = (bytes) => {
  const ends = [...bytes.keys()].filter((at) => bytes[at] === 10).map((at) => at + 1);
  return [0, ...ends].map((at, i) => bytes.subarray(at, ends[i] ?? bytes.length)).filter((piece) => piece.length);
};

const read = async ({ fromObjectStreamResponse }, b64) => {
  const chunks = [];
  let error = null;
  let source;
  const body = new ReadableStream({ start: (controller) => void (source = controller) });
  const reading = (async () => {
    try {
      const response = { ok: true, body, headers: new Headers(headers) };
      for await (const chunk of fromObjectStreamResponse(response)) chunks.push(JSON.stringify(chunk));
    } catch (thrown) {
      error = String(thrown.message ?? thrown);
    }
  })();
  const quietly = (call) => {
    try {
      call();
    } catch {} // the decoder has ended the stream already
  };
  for (const piece of pieces(Buffer.from(b64, "base64"))) {
    quietly(() => source.enqueue(new Uint8Array(piece)));
    await new Promise((done) => setTimeout(done, 0));
  }
  quietly(() => source.close());
  await reading;
  return { chunks, error };
};

const lines = [];
for (const one of JSON.parse(readFileSync(process.argv[3], "utf8"))) {
  const version = versions[one.version];
  const fresh = one.batches ? { ...one, ...(await written(version, one)) } : one;
  lines.push(JSON.stringify({ ...fresh, ...(await read(version, fresh.b64)) }));
}
writeSync(1, `[\n${lines.join(",\n")}\n]\n`);
