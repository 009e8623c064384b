// Writes tools.json.gz: what the reference (0.3.44) makes of tool calls.
// reads: readers of arguments that stream; answers: programs through the tool result stream; pending: messages whose calls
// wait; schemas, registries: JSON schemas; threads: messages turned into generic ones. Turns of the event loop pass
// between two steps of a program.
// Usage: npm install new@npm:assistant-stream@0.3.44, then node make_tools.mjs NODE_MODULES | gzip -9n > tools.json.gz
import { resolve } from "node:path";
import { pathToFileURL } from "node:url";

console.error = console.warn = () => {};
process.on("unhandledRejection", () => {});
const load = (path) => import(pathToFileURL(resolve(process.argv[2], "new/dist", path)));
const lib = await load("index.js");
const { ToolCallReaderImpl } = await load("core/tool/ToolCallReader.js");

let seed = 7;
const random = (n) => {
  seed = (Math.imul(seed, 1103515245) + 12345) & 0x7fffffff;
  return (seed >> 8) % n;
};
const pick = (list) => list[random(list.length)];
const turns = async () => {
  for (let i = 0; i < 8; i++) await new Promise((done) => setImmediate(done));
};
const cut = (text) => {
  const pieces = [];
  for (let at = 0; at < text.length; ) {
    const end = at + 1 + random(pick([1, 3, 9, 40]));
    pieces.push(text.slice(at, end));
    at = end;
  }
  return pieces;
};

// ── readers ──

const words = ["", "a", "Hello world", "é", "🌍", "\ud83c", "line\n\"q\"", "tru", "12"];
const value = (depth) => {
  switch (random(depth > 2 ? 5 : 8)) {
    case 0: return random(2000) - 1000;
    case 1: return random(2) === 0;
    case 2: return null;
    case 3: case 4: return pick(words) + pick(words);
    case 5: case 6: return Array.from({ length: random(4) }, () => value(depth + 1));
    default: return Object.fromEntries(Array.from({ length: random(4) }, () => [pick(["a", "b", "é", "1", "k"]), value(depth + 1)]));
  }
};
const escaped = (text) => text.replace(/[^\x00-\x7f]/g, (one) => "\\u" + one.charCodeAt(0).toString(16).padStart(4, "0"));
const paths = [[], ["a"], ["b"], ["a", 0], ["a", "b"], ["b", 1, "a"], ["list"], ["list", 1], ["text"], ["missing"], ["text", "x"], ["a", "0"]];
const kinds = ["get", "streamText", "streamValues", "forEach"];

async function read(pieces, wanted) {
  const reader = new ToolCallReaderImpl();
  const out = wanted.map(() => []);
  const ended = wanted.map(() => false);
  const begin = (index) => {
    const { kind, path } = wanted[index];
    const done = () => (ended[index] = true);
    if (kind === "get") reader.args.get(...path).then((got) => (out[index].push(got === undefined ? "undefined" : [got]), done()));
    else (async () => {
      for await (const got of reader.args[kind](...path)) out[index].push([JSON.parse(JSON.stringify(got))]);
      done();
    })();
  };
  for (let step = 0; step <= pieces.length; step++) {
    wanted.forEach(({ at }, index) => at === step && begin(index));
    await turns();
    if (step < pieces.length) await reader.appendArgsTextDelta(pieces[step]);
  }
  await turns();
  const before = [...ended];
  await reader.finishArgsText();
  await turns();
  return { out, before, ended };
}

const reads = [];
for (let i = 0; i < 260; i++) {
  const args = { [pick(["a", "b"])]: value(0), text: pick(words) + pick(words), list: [value(1), value(1)], b: value(0) };
  let text = JSON.stringify(args, null, pick([0, 0, 1]));
  if (random(4) === 0) text = escaped(text);
  if (random(4) === 0) text = text.slice(0, random(text.length));
  if (random(8) === 0) text = text.slice(0, random(text.length)) + pick(["x", "}", "]", ",", "\""]) + text.slice(random(text.length));
  const pieces = cut(text);
  const wanted = Array.from({ length: 4 }, () => ({ kind: pick(kinds), path: pick(paths), at: pick([0, 0, random(pieces.length + 1)]) }));
  reads.push({ pieces, wanted, ...(await read(pieces, wanted)) });
}

// ── answers ──

function toolbox(gates, aborted, log) {
  const gate = (id) => new Promise((done) => (gates[id] = done));
  const tool = (execute, more) => ({ type: "frontend", parameters: { type: "object" }, execute, ...more });
  return {
    echo: tool((args) => args),
    soon: tool(async (args) => args),
    later: tool(async (args, { toolCallId }) => (await gate(toolCallId), args)),
    fail: tool(() => { throw new Error("boom"); }),
    failLater: tool(async (args, { toolCallId }) => { await gate(toolCallId); throw new Error("late"); }),
    nothing: tool(() => undefined),
    response: tool((args) => new lib.ToolResponse(args)),
    model: tool((args) => args, { toModelOutput: ({ toolCallId, input, output }) => [{ type: "text", text: toolCallId + JSON.stringify([input, output]) }] }),
    modelLater: tool((args) => new lib.ToolResponse(args), { toModelOutput: async () => [{ type: "text", text: "m" }] }),
    badModel: tool((args) => args, { toModelOutput: () => { throw new Error("no"); } }),
    ask: tool(async (args, { human }) => ({ answer: await human(args) })),
    patient: tool((args, { abortSignal }) => new Promise((done) => {
      if (abortSignal.aborted) done("at once");
      abortSignal.addEventListener("abort", () => done("stopped"));
    })),
    watch: tool((args) => args, {
      streamCall: async (reader, { toolCallId }) => {
        const note = async (name, items) => { for await (const one of items) log.push([toolCallId, name, one]); };
        note("text", reader.args.streamText("q"));
        note("item", reader.args.forEach("l"));
        reader.args.get("n").then((n) => log.push([toolCallId, "n", n === undefined ? null : n]));
        reader.response.get().then((r) => log.push([toolCallId, "response", { ...r }]));
      },
    }),
    person: { type: "human", parameters: { type: "object" } },
    server: { type: "backend" },
  };
}
const names = ["echo", "soon", "later", "later", "fail", "failLater", "nothing", "response", "model", "modelLater", "badModel", "ask", "patient", "watch", "watch", "person", "server", "unknown", "toString2"];

async function answer(prog) {
  const gates = {}, log = [], calls = [], abort = new AbortController();
  const tools = toolbox(gates, abort.signal, log);
  const human = async (id, payload) => { if (payload.refuse) throw new Error("refused"); return [id, payload]; };
  let source;
  const stream = new ReadableStream({ start: (controller) => void (source = controller) });
  const steps = [];
  let out = [], error = null;
  const options = { onExecutionStart: (...a) => calls.push(["start", ...a.slice(0, 2)]), onExecutionEnd: (...a) => { calls.push(["end", ...a.slice(0, 2)]); throw new Error("ignored"); } };
  const reading = (async () => {
    try {
      for await (const chunk of stream.pipeThrough(lib.unstable_toolResultStream(tools, abort.signal, human, options))) out.push(JSON.parse(JSON.stringify(chunk)));
    } catch (thrown) {
      error = String(thrown.message ?? thrown);
    }
  })();
  for (const [op, arg] of prog) {
    if (op === "chunk") source.enqueue(structuredClone(arg));
    else if (op === "open") gates[arg]?.();
    else if (op === "abort") abort.abort();
    else if (op === "close") source.close();
    await turns();
    steps.push(out);
    out = [];
    if (error !== null) break;
  }
  if (error === null) await reading;
  return { steps, error, log, calls };
}

const args = () =>
  pick([
    () => ({ q: pick(words) + pick(words), l: [1, "two", [3]], n: random(9) }),
    () => ({ q: "hello there", l: [{ a: 1 }, null] }),
    () => ({ n: null }),
    () => ({ result: value(1), ...pick([{}, { isError: true }]), ...pick([{}, { artifact: value(1) }]), ...pick([{}, { modelContent: [{ type: "text", text: "mc" }] }]), ...pick([{}, { messages: [1] }]) }),
    () => ({ refuse: true }),
    () => ({}),
  ])();

function program() {
  const prog = [], open = [];
  let parts = 0;
  const chunk = (one) => prog.push(["chunk", one]);
  for (let left = 6 + random(18); left > 0; left--) {
    const kind = random(16);
    if (kind < 4 && parts < 6) {
      const path = [parts++];
      const id = `t${path[0]}`;
      const text = JSON.stringify(args());
      chunk({ type: "part-start", path: [], part: { type: "tool-call", toolCallId: id, toolName: pick(names) } });
      const pieces = cut(random(10) ? text : pick(["", "{", "[1,2]", "7", "{\"a\":1}x", "{\"__proto__\":1}"]));
      open.push({ path, id, pieces });
    } else if (kind === 4) {
      chunk({ type: "part-start", path: [], part: { type: "text" } });
      const path = [parts++];
      chunk({ type: "text-delta", path, textDelta: "word" });
      chunk({ type: "part-finish", path });
    } else if (kind < 12 && open.length) {
      const call = pick(open);
      if (call.pieces.length) chunk({ type: "text-delta", path: call.path, textDelta: call.pieces.shift() });
      else if (!call.done) (call.done = true), chunk({ type: "tool-call-args-text-finish", path: call.path });
      else if (random(2)) prog.push(["open", call.id]), (call.opened = true);
      else if (call.opened || random(2)) chunk({ type: "part-finish", path: call.path }), open.splice(open.indexOf(call), 1), prog.push(["open", call.id]);
    } else if (kind === 12 && open.length) {
      chunk({ type: "result", path: pick(open).path, result: value(1), isError: random(2) === 0, ...pick([{}, { artifact: 1 }]) });
    } else if (kind === 13) chunk({ type: "data", path: [], data: [1] });
    else if (kind === 14 && random(3) === 0) prog.push(["abort"]);
    else if (kind === 15 && random(5) === 0) chunk(pick([
      { type: "text-delta", path: [parts + 1], textDelta: "x" }, { type: "part-finish", path: [] }, { type: "result", path: [0, 0], result: 1, isError: false },
      { type: "part-start", path: [0], part: { type: "text" } }, { type: "tool-call-args-text-finish", path: [99] },
    ]));
  }
  for (const call of open) {
    for (const piece of call.pieces) chunk({ type: "text-delta", path: call.path, textDelta: piece });
    if (!call.done) chunk({ type: "tool-call-args-text-finish", path: call.path });
    prog.push(["open", call.id]);
    chunk({ type: "part-finish", path: call.path });
  }
  prog.push(["abort"], ["close"]);
  return prog;
}
const answers = [];
for (let i = 0; i < 220; i++) {
  const prog = program();
  answers.push({ prog, ...(await answer(prog)) });
}

// ── messages whose calls wait ──

const pending = [];
for (let i = 0; i < 60; i++) {
  const chunks = [];
  for (let n = 0; n < 1 + random(4); n++) {
    const name = pick(["echo", "soon", "nothing", "response", "model", "badModel", "ask", "person", "server", "unknown"]);
    const given = args();
    if (given.refuse) delete given.refuse;
    chunks.push({ type: "part-start", path: [], part: { type: "tool-call", toolCallId: `t${n}`, toolName: name } });
    chunks.push({ type: "text-delta", path: [n], textDelta: JSON.stringify(given) });
    if (random(4)) chunks.push({ type: "tool-call-args-text-finish", path: [n] });
    if (random(4) === 0) chunks.push({ type: "result", path: [n], result: 1, isError: false });
  }
  const abort = new AbortController();
  if (random(6) === 0) abort.abort();
  let message;
  const accumulator = new lib.AssistantMessageAccumulator();
  const source = new ReadableStream({ start: (c) => (chunks.forEach((one) => c.enqueue(structuredClone(one))), c.close()) });
  for await (const one of source.pipeThrough(accumulator)) message = one;
  const done = await lib.unstable_runPendingTools(message, toolbox({}, abort.signal, []), abort.signal, async (id, payload) => [id, payload]);
  pending.push({ chunks, aborted: abort.signal.aborted, parts: JSON.parse(JSON.stringify(done.parts)).map(({ timing, ...part }) => part) });
}

// ── schemas ──

const schema = (depth) => ({
  ...pick([{}, { type: "object" }, { title: "T" }]),
  ...(random(2) ? { required: ["a"] } : {}),
  ...(depth < 3 && random(4) ? { properties: Object.fromEntries(["a", "b", "required", "2"].slice(random(3)).map((key) => [key, pick([true, () => schema(depth + 1), () => schema(depth + 1), [1]])]).map(([key, one]) => [key, typeof one === "function" ? one() : one])) } : {}),
  ...(depth < 3 && random(3) === 0 ? { items: schema(depth + 1) } : {}),
  ...pick([{}, { anyOf: [{ required: ["x"] }] }, { properties: {} }].slice(0, depth ? 3 : 2)),
});
const schemas = Array.from({ length: 80 }, () => { const given = schema(0); return [given, lib.toPartialJSONSchema(given)]; });

const registries = Array.from({ length: 60 }, () => {
  const tools = Object.fromEntries(["z", "a", "B", "10", "9", "é", "🌍", "\uffff"].slice(random(7)).map((name) => [name, {
    ...pick([{}, { type: "frontend" }, { type: "backend" }, { type: "human" }, { type: "provider" }]),
    ...pick([{}, { description: "D" }, { description: "" }]),
    ...pick([{}, { parameters: schema(2) }, { parameters: schema(2) }]),
    ...pick([{}, {}, { disabled: true }]),
    ...pick([{}, {}, { providerOptions: { openai: { x: 1 } } }]),
    ...pick([{}, {}, {}, { unstable_backendDefault: { parameters: true } }]),
    ...pick([{}, { runs: true }]),
  }]));
  const real = Object.fromEntries(Object.entries(tools).map(([name, { runs, ...one }]) => [name, { ...one, ...(runs ? { execute: () => 1 } : {}) }]));
  return [Object.entries(tools), JSON.stringify(lib.toToolsJSONSchema(real)), JSON.stringify(lib.toToolsJSONSchema(real, { filter: (name, tool) => !tool.disabled }))];
});

// ── threads ──

const urls = [
  "https://x.com", "HTTP://EX.com:80/a b?é#f", "data:image/PNG;base64,AA==", "DATA:text/plain,x", "data:text/plain", "data:;base64,AA", "abcd==", "/rel/p.jpg",
  "https://h/p.JPEG?x=.gif", "https://h/p.svg#f.png", "https://h/noext", "p.tiff", "c:\\x.bmp", "http://", "mailto:x@y", "x:", "", " https://a/b.webp ", "https://é.com/ä.heic",
  "https://h/%zz/../q.ico", "blob:https://a/b.avif", "file:///C:/a/../b.tif", "a.b.gif", "http://[::1]:8080/x.heif", "https://u:p@h/x", "http://1.2/x", "https://h:443/", "https://h\\p",
];
const part = () =>
  pick([
    () => ({ type: "text", text: pick(["", "hi", "é", "more"]) }),
    () => ({ type: "text", text: pick(["", "hi"]) }),
    () => ({ type: "reasoning", text: "r" }),
    () => ({ type: "image", image: pick(urls), ...pick([{}, { filename: "f.png" }, { filename: "" }]) }),
    () => ({ type: "file", data: pick([...urls, null]), ...pick([{}, { mimeType: "" }, { mimeType: "a/b" }, { mimeType: 1 }]), ...pick([{}, { filename: "f" }]) }),
    () => ({ type: "tool-call", ...pick([{ toolCallId: "c" }, { toolCallId: "d" }, { toolCallId: "c" }, { toolCallId: "" }, {}]), toolName: pick(["n", "m", "n", ""]),
      ...pick([{}, { args: { a: 1 } }, { args: null }]), ...pick([{}, { state: "result" }, { state: "call" }]), ...pick([{}, {}, { result: pick([null, "", 0, { r: 1 }]) }]),
      ...pick([{}, {}, { isError: true }, { isError: false }]),
      ...pick([{}, {}, { interrupt: { x: 1 } }, { interrupt: null }]),
      ...pick([{}, {}, { approval: null }, { approval: { id: "a" } }, { approval: { approved: true } }, { approval: { approved: false } }, { approval: { resolution: "cancelled" } }]) }),
    () => ({ type: "tool-call", toolCallId: "t", toolName: "w", args: {}, ...pick([{}, { result: 1 }]) }),
  ])();
const parts = () => Array.from({ length: random(6) }, part);
const threads = Array.from({ length: 300 }, () => {
  const messages = Array.from({ length: 1 + random(3) }, () => ({
    role: pick(["system", "user", "user", "assistant", "assistant", "assistant", "other"]), content: parts(), ...pick([{}, {}, { attachments: [{ content: parts() }, { content: parts() }] }]),
  }));
  return [messages, JSON.stringify(lib.toGenericMessages(messages))];
});

process.stdout.write(JSON.stringify({ node: process.version, reads, answers, pending, schemas, registries, threads }) + "\n");
