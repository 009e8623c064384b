// Writes messages.json.gz: what both reference versions make of programs (controller calls) and of stray chunks: the chunks,
// and the accumulated message after each of them (without its alias `content`).
// Time is a counter (see `clock`), every id is 0000000, and a turn of the event loop passes between two calls.
// Usage: npm install old@npm:assistant-stream@0.3.15 new@npm:assistant-stream@0.3.44, then
//        node make_messages.mjs NODE_MODULES GOLDEN_VECTORS | gzip -9n > messages.json.gz
import { readFileSync } from "node:fs";
import { resolve } from "node:path";
import { pathToFileURL } from "node:url";

let now = 0;
Date.now = () => now;
Math.random = () => 0;
console.error = console.warn = () => {};
process.on("unhandledRejection", () => {});

const load = (name) => import(pathToFileURL(resolve(process.argv[2], name, "dist/index.js")));
const versions = { "0.3.15": await load("old"), "0.3.44": await load("new") };

let seed = 5;
const random = (n) => {
  seed = (Math.imul(seed, 1103515245) + 12345) & 0x7fffffff;
  return (seed >> 8) % n;
};
const pick = (list) => list[random(list.length)];
const tick = () => new Promise((done) => setImmediate(done));

// ── programs ──

async function play(lib, prog, controller, handles) {
  const under = (parent) => (parent === undefined ? controller : controller.withParentId(parent));
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
      case "merge": controller.merge(lib.createAssistantStream((inner) => play(lib, a[0], inner, {}))); break;
      case "end": controller.close(); break;
      case "throw": throw new Error(a[0]);
      default: throw new Error(`unknown operation ${op}`);
    }
    await tick();
  }
}

async function run(lib, prog) {
  const chunks = [];
  const stream = lib.createAssistantStream((controller) => play(lib, prog, controller, {}));
  const reader = stream.getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return chunks;
    chunks.push(value);
  }
}

// The counter: 1000 at the start, and before chunk i (from 0) it goes on by 3 + i mod 5; before the end by 10.
async function accumulate(lib, chunks) {
  now = 1000;
  const messages = [];
  let failed = null;
  const accumulator = new lib.AssistantMessageAccumulator();
  const writer = accumulator.writable.getWriter();
  const reading = (async () => {
    const reader = accumulator.readable.getReader();
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const { content, ...rest } = value;
      messages.push(JSON.parse(JSON.stringify(rest)));
    }
  })().catch(() => {});
  try {
    for (const [i, chunk] of chunks.entries()) {
      now += 3 + (i % 5);
      await writer.write(structuredClone(chunk));
    }
    now += 10;
    await writer.close();
  } catch (error) {
    failed = String(error);
  }
  await reading;
  return { messages, failed };
}

const texts = ["", "a", "Hello ", "é", "🌍", "\ud83c", "\udf0d", "\u2028\n", "\"\\", "</b>", "\u0000", "words and words "];
const values = [null, 0, -1.5, 1e21, 1e-7, true, "x", [], {}, [1, [2]], { b: 1, 2: "two", 1: "one", a: { é: null } }];
const reasons = ["stop", "length", "content-filter", "tool-calls", "error", "other", "unknown"];
const usage = () => pick([{ inputTokens: 1, outputTokens: 2 }, { inputTokens: 0, outputTokens: 0 }, { inputTokens: 9, outputTokens: 31 }]);
const some = (make) => Array.from({ length: random(3) }, make);
const operation = () =>
  pick([
    () => ({ type: "set", path: [pick(["a", "b"])], value: pick(values) }),
    () => ({ type: "set", path: [], value: pick([{ a: "s", l: [1, "t"] }, { a: { b: "x" } }]) }),
    () => ({ type: "set", path: ["t"], value: pick(texts) }),
    () => ({ type: "set", path: ["l"], value: [1, "t", { d: "e" }] }),
    () => ({ type: "set", path: ["n", "m", pick(["x", "1"])], value: pick(values) }),
  ])();
const message = () =>
  pick([
    () => ({ type: "step-start", path: [], messageId: pick(["m1", "m2"]) }),
    () => ({ type: "step-finish", path: [], finishReason: pick(reasons), usage: usage(), isContinued: random(2) === 0 }),
    () => ({ type: "message-finish", path: [], finishReason: pick(reasons), usage: usage() }),
    () => ({ type: "annotations", path: [], annotations: some(() => pick(values)) }),
    () => ({ type: "data", path: [], data: some(() => pick(values)) }),
    () => ({ type: "error", path: [], error: pick(texts), ...pick([{}, { code: "c" }, { severity: "warning" }, { code: "d", severity: "info" }]) }),
    () => ({ type: "update-state", path: [], operations: [{ type: "set", path: ["t"], value: "t" }, ...some(operation), { type: "set", path: ["t"], value: "t" }, { type: "append-text", path: ["t"], value: pick(texts) }] }),
  ])();
const response = () => ({
  ...pick([{ result: pick(values) }, { result: pick(values) }, {}]),
  ...pick([{}, { artifact: pick(values) }]),
  ...pick([{}, { isError: true }, { isError: false }]),
  ...pick([{}, {}, { modelContent: [{ type: "text", text: pick(texts) }] }]),
  ...pick([{}, {}, { messages: [pick(values)] }]),
});
const whole = () =>
  pick([
    () => ["source", { type: "source", sourceType: "url", id: "s", url: "u", ...pick([{}, { title: "" }, { title: "T" }]) }],
    () => ["file", { type: "file", data: pick(texts), mimeType: "text/plain" }],
    () => ["data", { type: "data", name: "chart", data: pick(values) }],
  ])();
const args = ['{"q":', '"x"', ",", '"n":1', "2", "}", "tru", '"é\\u00', 'e9"', "[", "]", " ", "x"];

function program(depth) {
  const prog = [];
  let open = [];
  let names = 0;
  const settled = new Set();
  const parent = () => pick([[], [], ["p"], ["q"], [""]]);
  for (let left = 3 + random(depth ? 8 : 16); left > 0; left--) {
    const kind = random(20);
    if (kind < 4) prog.push(["appendText", pick(texts), ...parent()]);
    else if (kind < 6) prog.push(["appendReasoning", pick(texts), ...parent()]);
    else if (kind === 6) prog.push([pick(["textPart", "reasoningPart"]), `h${++names}`, ...parent()]), open.push(["text", `h${names}`]);
    else if (kind < 9) {
      const id = pick([{}, { toolCallId: `t${names}` }]);
      prog.push(["toolPart", `h${++names}`, { ...id, toolName: pick(["n", "é"]), ...pick([{}, {}, {}, { args: pick(values.slice(8)) }, { argsText: "{}" }]) }, ...parent()]);
      const last = prog.at(-1)[2];
      if (last.args !== undefined || last.argsText !== undefined) settled.add(`h${names}`);
      open.push(["tool", `h${names}`]);
    } else if (kind < 14 && open.length) {
      const [type, name] = pick(open);
      if (type === "text") prog.push(["append", name, pick(texts)]);
      else if (random(3) && !settled.has(name)) prog.push(["args", name, pick(args)]);
      else if (random(2)) prog.push(["argsClose", name]), settled.add(name);
      else prog.push(["response", name, response()]), settled.add(name);
    } else if (kind === 14 && open.length) {
      const [, name] = pick(open);
      prog.push(["close", name]);
      open = open.filter(([, other]) => other !== name);
    } else if (kind === 15) prog.push([...whole(), ...parent()]);
    else if (kind === 16 && depth < 2) prog.push(["merge", program(depth + 1)]);
    else if (kind === 17) prog.push(["appendSummary", pick(texts), pick(texts), ...parent()]);
    else prog.push(["enqueue", message()]);
  }
  while (open.length) prog.push(["close", open.splice(random(open.length), 1)[0][1]]);
  const end = random(8);
  if (end === 0) prog.push(["throw", pick(["boom", ""])]);
  if (end === 1) prog.push(["end"], ["appendText", "late"]);
  if (end === 2) prog.push(["textPart", "z"], ["close", "z"], ["append", "z", "late"]);
  if (end === 3) prog.push(["textPart", "z"], ["end"], ["append", "z", "in time"], ["close", "z"], ["textPart", "y"]);
  return prog;
}

function strays() {
  const chunks = [];
  let parts = 0;
  for (let left = 4 + random(16); left > 0; left--) {
    const path = [random(parts + 1)];
    const kind = random(14);
    if (kind < 3) {
      parts++;
      const part = pick([
        { type: "text" },
        { type: "reasoning", ...pick([{}, { unstable_summary: "" }, { unstable_summary: "S" }]) },
        { type: "tool-call", toolCallId: pick(["t1", "t2"]), toolName: "n" },
        { type: "tool-call", toolCallId: pick(["t1", "t2"]), toolName: "n", parentId: "p" },
        whole()[1],
        { type: "text", parentId: pick(["", "p"]) },
        { type: "step", x: 1 },
      ]);
      chunks.push({ type: "part-start", path: [], part });
    } else if (kind < 7) chunks.push({ type: "text-delta", path, textDelta: pick(random(2) ? texts : args) });
    else if (kind === 7) chunks.push({ type: "part-finish", path });
    else if (kind === 8) chunks.push({ type: "tool-call-args-text-finish", path });
    else if (kind < 11) chunks.push({ type: "result", path, ...response() });
    else if (kind === 11) chunks.push({ ...pick([{ type: "text-delta", textDelta: "d" }, { type: "part-finish" }]), path: pick([[], [0, 0], [7]]) });
    else chunks.push(random(6) ? message() : { type: "update-state", path: [], operations: [pick([
      { type: "append-text", path: ["zz"], value: "x" }, { type: "set", path: ["t", "x"], value: 1 }, { type: "set", path: ["__proto__"], value: 1 },
      { type: "set", path: ["l", "9"], value: 1 }, { type: "set", path: ["l", "-1"], value: 1 }, { type: "set", path: ["l", "x"], value: 1 },
      { type: "set", path: ["l", "0"], value: 1 }, { type: "append-text", path: ["l", "1"], value: "u" }, { type: "wrong", path: [], value: 1 }, { type: "set", path: ["l", "1.5"], value: 1 },
    ])] });
  }
  return chunks;
}

const golden = JSON.parse(readFileSync(process.argv[3], "utf8")).cases;
const programs = golden.map(({ prog }) => prog);
for (let i = 0; i < 250; i++) programs.push(program(0));
const cases = { programs: [], strays: [] };
for (const prog of programs) {
  const one = { prog };
  for (const [version, lib] of Object.entries(versions)) {
    const chunks = await run(lib, prog);
    one[version] = { chunks, ...(await accumulate(lib, chunks)) };
  }
  cases.programs.push(one);
}
for (let i = 0; i < 200; i++) {
  const chunks = strays();
  const one = { chunks };
  for (const [version, lib] of Object.entries(versions)) one[version] = await accumulate(lib, chunks);
  cases.strays.push(one);
}
process.stdout.write(JSON.stringify({ node: process.version, ...cases }) + "\n");
