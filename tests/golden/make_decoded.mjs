// Records anew what both reference versions decode: reads decoded.json, gives the same cases with fresh chunks and errors.
// A stream is fed a line at a time, with turns of the event loop between.
// Usage: npm install old@npm:assistant-stream@0.3.15 new@npm:assistant-stream@0.3.44, then
//        node make_decoded.mjs NODE_MODULES decoded.json > fresh.json
import { readFileSync, writeSync } from "node:fs";
import { resolve } from "node:path";
import { pathToFileURL } from "node:url";

console.error = console.warn = () => {};
process.on("unhandledRejection", () => {});

const load = (name) => import(pathToFileURL(resolve(process.argv[2], name, "dist/index.js")));
const versions = { "0.3.15": await load("old"), "0.3.44": await load("new") };
const decoders = {
  "data-stream": "DataStreamDecoder",
  "assistant-transport": "AssistantTransportDecoder",
  "plain-text": "PlainTextDecoder",
  "ui-message-stream": "UIMessageStreamDecoder",
};
const turns = async () => {
  for (let i = 0; i < 6; i++) await new Promise((done) => setImmediate(done));
};

const pieces = (bytes) => {
  const ends = [...bytes.keys()].filter((at) => bytes[at] === 10).map((at) => at + 1);
  return [0, ...ends].map((at, i) => bytes.subarray(at, ends[i] ?? bytes.length)).filter((piece) => piece.length);
};

const decode = async ({ version, format, strict, b64 }) => {
  const Decoder = versions[version][decoders[format]];
  const chunks = [];
  let error = null;
  let source;
  const stream = new ReadableStream({ start: (controller) => void (source = controller) });
  const reading = (async () => {
    try {
      for await (const chunk of stream.pipeThrough(strict ? new Decoder() : new Decoder({ strict: false })))
        chunks.push(JSON.stringify(chunk));
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
    await turns();
  }
  quietly(() => source.close());
  await reading;
  return { chunks, error };
};

const cases = JSON.parse(readFileSync(process.argv[3], "utf8"));
const lines = [];
for (const one of cases) lines.push(JSON.stringify({ ...one, ...(await decode(one)) }));
writeSync(1, `[\n${lines.join(",\n")}\n]\n`);
