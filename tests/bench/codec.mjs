// npm assistant-stream in the codec benchmark: a JSON line in ({action, format, n, version}), the microseconds of CPU time
// a chunk out. Usage: node codec.mjs NODE_MODULES
import { createInterface } from "node:readline";
import { resolve } from "node:path";
import { pathToFileURL } from "node:url";

const folders = { "0.3.15": "assistant-stream-old", "0.3.44": "assistant-stream-new" };
const libraries = {};
for (const [version, folder] of Object.entries(folders))
  libraries[version] = await import(pathToFileURL(resolve(process.argv[2], folder, "dist/index.js")));

const TEXT = "hello wörld ";
const names = { "data-stream": "DataStream", "assistant-transport": "AssistantTransport", "plain-text": "PlainText" };

const chunks = (n) => {
  const list = [{ type: "part-start", part: { type: "text" }, path: [] }];
  for (let i = 0; i < n; i++) list.push({ type: "text-delta", path: [0], textDelta: TEXT });
  list.push({ type: "part-finish", path: [0] });
  return list;
};

const through = async (list, transform) => {
  let at = 0;
  let count = 0;
  let last;
  const source = new ReadableStream({
    pull(controller) {
      if (at < list.length) controller.enqueue(list[at++]);
      else controller.close();
    },
  });
  const reader = source.pipeThrough(transform).getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return [count, last];
    last = value;
    count++;
  }
};

const encoded = async (lib, format, n) => {
  const bytes = [];
  const source = new ReadableStream({ start: (c) => (chunks(n).forEach((chunk) => c.enqueue(chunk)), c.close()) });
  for await (const piece of source.pipeThrough(new lib[`${names[format]}Encoder`]())) bytes.push(piece);
  return Buffer.concat(bytes);
};

const prepare = {
  encode: async (lib, { format, n }) => [chunks(n), () => new lib[`${names[format]}Encoder`]()],
  decode: async (lib, { format, n, piece }) => {
    const bytes = await encoded(lib, format, n);
    const pieces = [];
    for (let at = 0; at < bytes.length; at += piece) pieces.push(new Uint8Array(bytes.subarray(at, at + piece)));
    return [pieces, () => new lib[`${names[format]}Decoder`]()];
  },
  accumulate: async (lib, { n }) => [chunks(n), () => new lib.AssistantMessageAccumulator()],
};

for await (const line of createInterface({ input: process.stdin })) {
  const job = JSON.parse(line);
  const [input, transform] = await prepare[job.action](libraries[job.version], job);
  const before = process.cpuUsage();
  const [count, last] = await through(input, transform());
  const { user, system } = process.cpuUsage(before);
  if (count === 0 || (job.action === "accumulate" && last.parts[0].text.length !== TEXT.length * job.n)) throw new Error("wrong");
  process.stdout.write(JSON.stringify((user + system) / job.n) + "\n");
}
