// Records anew what the chat transports of AI SDK 5 and 6 make of UI message streams: reads ui-message-stream.json,
// gives the same cases with fresh messages. Fails where a version leaves an event out, or the two disagree on errors.
// Usage: npm install ai5@npm:ai@5 ai6@npm:ai@6, then
//        node make_ui_message_stream.mjs NODE_MODULES ui-message-stream.json > fresh.json
import assert from "node:assert";
import { readFileSync, writeSync } from "node:fs";
import { resolve } from "node:path";
import { pathToFileURL } from "node:url";

const load = (name) => import(pathToFileURL(resolve(process.argv[2], name, "dist/index.mjs")));
const versions = [await load("ai5"), await load("ai6")];

const read = async ({ DefaultChatTransport, readUIMessageStream }, bytes) => {
  class Transport extends DefaultChatTransport {
    events(stream) {
      return this.processResponseStream(stream);
    }
  }
  const body = new ReadableStream({
    start: (controller) => {
      controller.enqueue(new Uint8Array(bytes));
      controller.close();
    },
  });
  let events = 0;
  const count = new TransformStream({
    transform: (event, controller) => {
      events += 1;
      controller.enqueue(event);
    },
  });
  let message = null;
  let error = null;
  const stream = new Transport({}).events(body).pipeThrough(count);
  const onError = (thrown) => void (error = String(thrown));
  for await (const state of readUIMessageStream({ stream, onError, terminateOnError: false })) message = state;
  return { events, error, message };
};

const lines = [];
for (const one of JSON.parse(readFileSync(process.argv[3], "utf8"))) {
  const bytes = Buffer.from(one.b64, "base64");
  const sent = bytes.toString().split("\n\n").length - 2; // without [DONE] and what follows it
  const [five, six] = await Promise.all(versions.map((version) => read(version, bytes)));
  assert.deepStrictEqual([five.events, five.error], [sent, six.error], one.name);
  assert.strictEqual(six.events, sent, one.name);
  lines.push(JSON.stringify({ ...one, error: six.error, message: six.message }));
}
writeSync(1, `[\n${lines.join(",\n")}\n]\n`);
