// A process of npm assistant-stream on Redis: takes one call a line as JSON, answers by its number.
//   node redis_agent.mjs PORT PREFIX old|new
import { createInterface } from "node:readline";
import Redis from "ioredis";

const [port, prefix, release] = process.argv.slice(2);
const { createIoredisResumableStreamStore } = await import(`assistant-stream-${release}/resumable/ioredis`);
const client = new Redis({ host: "127.0.0.1", port: Number(port) });
const store = createIoredisResumableStreamStore(client, { keyPrefix: prefix, pollIntervalMs: 5 });

const say = (value) => process.stdout.write(JSON.stringify(value) + "\n");
const bytes = (text) => new Uint8Array(Buffer.from(text, "base64"));

const calls = {
  acquire: ({ id, ttlMs }) =>
    release === "new" ? store.acquireLease(id, ttlMs ? { ttlMs } : undefined) : store.acquire(id, ttlMs ? { ttlMs } : undefined),
  append: ({ id, chunk, lease }) => store.append(id, bytes(chunk), lease),
  finalize: ({ id, status, error, lease }) => store.finalize(id, status, error, lease),
  status: ({ id }) => store.status(id),
  delete: ({ id }) => store.delete(id),
  async read({ id, cursor, n }) {
    for await (const entry of store.read(id, cursor ?? "", new AbortController().signal)) {
      say({ n, chunk: Buffer.from(entry.chunk).toString("base64"), cursor: entry.cursor });
    }
  },
};

say({ n: 0 });
const lines = createInterface({ input: process.stdin });
lines.on("line", async (line) => {
  const call = JSON.parse(line);
  try {
    say({ n: call.n, result: (await calls[call.op](call)) ?? null });
  } catch (error) {
    say({ n: call.n, error: error.message, code: error.code ?? null });
  }
});
lines.on("close", () => process.exit(0));
