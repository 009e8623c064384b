// Runs upstream for the differential tests: one process, a JSON line in (an array of jobs), a JSON line out (an array of
// outcomes). Usage: node upstream.mjs NODE_MODULES
//
// Every step is followed by a turn of the event loop, so that what upstream does is program order and no race. Time is a
// counter and every id is 0000000. What upstream logs is part of the outcome.
import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";
import { resolve } from "node:path";

let now = 1000;
Date.now = () => now;
Math.random = () => 0;
let logged = [];
console.error = console.warn = (text) => void (logged.length < 100 && logged.push(String(text)));
process.on("unhandledRejection", () => {});

const folders = { "0.3.15": "assistant-stream-old", "0.3.44": "assistant-stream-new" };
const load = (version, file) => import(pathToFileURL(resolve(process.argv[2], folders[version], "dist", file)));
const libraries = {};
const partials = {};
for (const version of Object.keys(folders)) {
  libraries[version] = await load(version, "index.js");
  partials[version] = await load(version, "utils/json/parse-partial-json-object.js");
}
const WATCHDOG = 30_000;
const PATIENCE = 12; // turns that a finished program gets to end its stream

const turn = () => new Promise((done) => setImmediate(done));
const quietly = (call) => {
  try {
    call();
  } catch {} // the other end has ended the stream already
};
const told = (error) => ({ name: error?.name ?? typeof error, message: String(error?.message ?? error) });

// ── controller programs ──

async function play(lib, prog, controller, state) {
  const handles = {};
  const under = (parent) => (parent === undefined || parent === null ? controller : controller.withParentId(parent));
  state.playing++;
  try {
    for (const [op, ...a] of prog) {
      switch (op) {
        case "appendText": under(a[1]).appendText(a[0]); break;
        case "appendReasoning": under(a[1]).appendReasoning(a[0]); break;
        case "appendSummary": under(a[2]).appendReasoning(a[0], { unstable_summary: a[1] }); break;
        case "textPart": handles[a[0]] = under(a[1]).addTextPart(); break;
        case "reasoningPart": handles[a[0]] = under(a[1]).addReasoningPart(); break;
        case "append": handles[a[0]].append(a[1]); break;
        case "toolPart": handles[a[0]] = under(a[2]).addToolCallPart(a[1]); break;
        case "args": handles[a[0]].argsText.append(a[1]); break;
        case "argsClose": handles[a[0]].argsText.close(); break;
        case "response": handles[a[0]].setResponse(a[1]); break;
        case "close": handles[a[0]].close(); break;
        case "source": under(a[1]).appendSource(a[0]); break;
        case "file": under(a[1]).appendFile(a[0]); break;
        case "data": under(a[1]).appendData(a[0]); break;
        case "enqueue": controller.enqueue(a[0]); break;
        case "merge": controller.merge(lib.createAssistantStream((inner) => play(lib, a[0], inner, state))); break;
        case "end": controller.close(); break;
        case "throw": throw new Error(a[0]);
        default: throw new Error(`unknown operation ${op}`);
      }
      await turn();
    }
  } finally {
    state.playing--;
  }
}

// `ended` is false where upstream waits for ever for parts that nobody closed.
async function program({ version, prog }) {
  const lib = libraries[version];
  const state = { playing: 0 };
  const out = { chunks: [], error: null, ended: false };
  let begun = false;
  const stream = lib.createAssistantStream((controller) => {
    begun = true;
    return play(lib, prog, controller, state);
  });
  const reader = stream.getReader();
  const reading = (async () => {
    try {
      for (;;) {
        const { done, value } = await reader.read();
        if (done) break;
        out.chunks.push(JSON.stringify(value));
      }
    } catch (error) {
      out.error = told(error);
    }
    out.ended = true;
  })();
  for (let idle = 0; !out.ended && idle < PATIENCE; idle = begun && state.playing === 0 ? idle + 1 : 0) await turn();
  if (out.ended) await reading;
  else void reader.cancel().catch(() => {});
  return { ...out };
}

// ── chunks: to bytes, to messages ──

const encoders = {
  "data-stream": "DataStreamEncoder",
  "assistant-transport": "AssistantTransportEncoder",
  "plain-text": "PlainTextEncoder",
};

const source = () => {
  let controller;
  const stream = new ReadableStream({ start: (given) => void (controller = given) });
  return [stream, controller];
};

async function encode({ version, format, chunks }) {
  const [stream, controller] = source();
  const out = [];
  const result = { b64: "", error: null, at: null };
  let fed = 0;
  const reading = (async () => {
    try {
      for await (const bytes of stream.pipeThrough(new libraries[version][encoders[format]]())) out.push(bytes);
    } catch (error) {
      result.error = told(error);
      result.at = fed;
    }
  })();
  for (const chunk of chunks) {
    quietly(() => controller.enqueue(chunk));
    await turn();
    await turn();
    fed++;
  }
  quietly(() => controller.close());
  await reading;
  result.b64 = Buffer.concat(out).toString("base64");
  return result;
}

// The counter: 1000 at the start, and before chunk i (from 0) it goes on by 3 + i mod 5; before the end by 10.
async function accumulate({ version, chunks }) {
  now = 1000;
  const messages = [];
  let failed = null;
  const accumulator = new libraries[version].AssistantMessageAccumulator();
  const writer = accumulator.writable.getWriter();
  writer.closed.catch(() => {});
  const reading = (async () => {
    const reader = accumulator.readable.getReader();
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const { content, ...rest } = value;
      messages.push(JSON.stringify(rest));
    }
  })().catch(() => {});
  try {
    for (const [i, chunk] of chunks.entries()) {
      now += 3 + (i % 5);
      await writer.write(structuredClone(chunk));
      await turn();
    }
    now += 10;
    await writer.close();
  } catch (error) {
    failed = told(error);
  }
  await reading;
  return { messages, failed };
}

// ── bytes to chunks ──

const decoders = {
  "data-stream": "DataStreamDecoder",
  "assistant-transport": "AssistantTransportDecoder",
  "plain-text": "PlainTextDecoder",
  "ui-message-stream": "UIMessageStreamDecoder",
};

const objectHeaders = { "Content-Type": "text/event-stream", "Assistant-Stream-Format": "object-stream/v0" };

// `at` is the number of the piece at which the error came; the end of the bytes is the piece after the last. `counts` is how
// many chunks there were after each piece.
async function decode({ version, format, strict, b64, ends }) {
  const lib = libraries[version];
  const [stream, controller] = source();
  const result = { chunks: [], counts: [], error: null, at: null };
  let fed = 0;
  const open = () => {
    if (format === "object-stream") return lib.fromObjectStreamResponse(new Response(stream, { headers: objectHeaders }));
    const Decoder = lib[decoders[format]];
    return stream.pipeThrough(strict ? new Decoder() : new Decoder({ strict: false }));
  };
  const reading = (async () => {
    try {
      for await (const chunk of open()) result.chunks.push(JSON.stringify(chunk) ?? "undefined");
    } catch (error) {
      result.error = told(error);
      result.at = fed;
    }
  })();
  const bytes = Buffer.from(b64, "base64");
  let start = 0;
  for (const end of ends) {
    quietly(() => controller.enqueue(new Uint8Array(bytes.subarray(start, end))));
    for (let i = 0; i < 3; i++) await turn();
    start = end;
    fed++;
    result.counts.push(result.chunks.length);
  }
  quietly(() => controller.close());
  await reading;
  return result;
}

// ── object streams, partial JSON, JSON ──

async function object({ version, initial, frames }) {
  const lib = libraries[version];
  const result = { b64: "", error: null, snapshots: [] };
  const parts = [];
  const snapshots = [];
  try {
    const stream = lib.createObjectStream({
      ...(initial === undefined ? {} : { defaultValue: initial }),
      execute: async (controller) => {
        for (const operations of frames) {
          controller.enqueue(operations);
          await turn();
        }
      },
    });
    const [one, other] = stream.tee();
    const seeing = (async () => {
      for await (const chunk of other) snapshots.push(JSON.stringify(chunk));
    })().catch(() => {});
    const reader = new lib.ObjectStreamResponse(one).body.getReader();
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      parts.push(value);
    }
    await seeing;
  } catch (error) {
    result.error = told(error);
  }
  return { ...result, b64: Buffer.concat(parts).toString("base64"), snapshots };
}

const paths = (value, at = []) =>
  value === null || typeof value !== "object" ? [at] : [at, ...Object.keys(value).flatMap((key) => paths(value[key], [...at, key]))];

function partial({ version, text }) {
  const { parsePartialJsonObject, getPartialJsonObjectMeta, getPartialJsonObjectFieldState } = partials[version];
  const result = parsePartialJsonObject(text);
  if (result === undefined) return { value: null };
  const { state, partialPath } = getPartialJsonObjectMeta(result);
  const fields = [...paths(result), ["missing"], ["a", "0", "b"]].slice(0, 24);
  const states = fields.map((field) => getPartialJsonObjectFieldState(result, field));
  return { value: JSON.stringify(result), state, path: state === "partial" ? partialPath : [], fields, states };
}

function json({ text }) {
  try {
    return { value: JSON.stringify(JSON.parse(text)) };
  } catch {
    return { value: null };
  }
}

// ── the loop ──

const kinds = { program, encode, accumulate, decode, object, partial, json };

async function run(job) {
  logged = [];
  let timer;
  const late = new Promise((done) => (timer = setTimeout(() => done({ hung: true }), WATCHDOG)));
  const outcome = await Promise.race([
    Promise.resolve()
      .then(() => kinds[job.do](job))
      .catch((error) => ({ threw: told(error) })),
    late,
  ]);
  clearTimeout(timer);
  return { ...outcome, logged };
}

// A program's chunks are encoded and accumulated at once, in the same batch.
async function expand(job) {
  const first = await run(job);
  if (job.do !== "program" || job.then === undefined) return first;
  const chunks = first.chunks.map((text) => JSON.parse(text));
  const rest = [];
  for (const next of job.then) rest.push(await run({ ...next, version: job.version, chunks }));
  return { ...first, then: rest };
}

for await (const line of createInterface({ input: process.stdin })) {
  const outcomes = [];
  for (const job of JSON.parse(line)) outcomes.push(await expand(job));
  process.stdout.write(JSON.stringify(outcomes) + "\n");
}
