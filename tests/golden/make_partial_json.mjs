// Writes partial-json.json.gz: what both reference versions make of every prefix of many documents, and of broken texts.
// Usage: npm install old@npm:assistant-stream@0.3.15 new@npm:assistant-stream@0.3.44, then
//        node make_partial_json.mjs NODE_MODULES | gzip -9n > partial-json.json.gz
import { pathToFileURL } from "node:url";
import { resolve } from "node:path";

const load = async (name) =>
  import(pathToFileURL(resolve(process.argv[2], name, "dist/utils/json/parse-partial-json-object.js")));
const versions = { "0.3.15": await load("old"), "0.3.44": await load("new") };

const documents = [
  '{"query":"weather","n":12,"ok":true,"no":false,"nil":null}',
  '{"a":{"b":[1,2,{"c":"d"}],"e":{}},"f":[]}',
  ' \n{ "a" : [ 1 , -2.5e+10 , 3E-2 , 0 ] , "b" : "x" } ',
  '{"esc":"q\\"\\\\\\/\\b\\f\\n\\r\\t\\u00e9\\ud83c\\udf0d","k\\u0065y":1,"k\\"q":[{"x":"y"}]}',
  '{"emoji":"🌍 é\u2028","é":{"🌍":[true,false,null]}}',
  '[1,[2,[3,[]]],{"a":[{"b":0}]}]',
  '[ "a", {"x": tru',
  '{"deep":[[[[[["x"]]]]]]}',
  '{"":{"":["",{"":1}]}}',
  '{"1":1,"0":[0],"01":"x","length":2}',
  '{"a":-1,"b":-0.0,"c":1e5,"d":1E+5,"e":12345678901234567890}',
  '{"t":[true,null,false],"n":[null],"s":["tr","nu"]}',
  '{"a":1}{"b":2}',
  '{"a":1} trailing',
  '{"__proto__":{"x":1},"a":1}',
  '{"constructor":{"prototype":1}}',
  '{"constructor":{"name":"x"},"a":[{"constructor":1}]}',
  '{"a":"__proto__","b":"constructor"}',
  '{"\\u005f_proto__":1}',
  "\ufeff{\"a\":[1]}",
];
const broken = [
  "", " ", "x", "{x", "{\"a\":x", "{\"a\":1,x", "{\"a\" 1}", "[1 2]", "[1,,2", "{,", "[,", "{\"a\":1 2", "tru", "12", "\"s", "null",
  "{\"a\":nul,\"b\":1", "{\"a\":tx,\"b\":[1", "[tx,2", "[1x,2", "{\"a\":1x,\"b\":2", "{\"a\":--1", "{\"a\":1.2.3,\"b\":1", "{'a':1}",
  "{\"a\":\"\\x\",\"b\":1", "{\"a\":\"\\u12G4\",\"b\":1", "{\"k\\u12\":1", "{\"k\\x\":[", "{\"a\n\":[1", "{\"a\":\"l\n", "]", "}", "{]", "[}", "{}}",
  "[[1,2],[3", "[{\"a\":1},{\"b\":", "{\"a\":[1,2", "[1.", "[1e", "[-", "[1, -", "{\"a\":+1", "[ ", "[ x", "{\"a\":[ ", "{\"a\":1e+", "NaN", "[NaN]", "[Infinity]",
  "{\"a\":\"\\u", "{\"a\":\"\\ud83c\\u", "{\"a\\u00", "[\"\\u00e", "{\"a\":{\"b\":1},\"c\":t", "[t,f,n", "[t,f,n]",
];

// a small generator of random documents, so that a run can be repeated
let seed = 20261121;
const random = (n) => {
  seed = (Math.imul(seed, 1103515245) + 12345) & 0x7fffffff;
  return (seed >> 8) % n;
};
const words = ["", "a", "b", "key", "é", "🌍", "\\", "\"", "\n", "true", "0", "\u0000", "length"];
const value = (depth) => {
  switch (random(depth > 3 ? 6 : 8)) {
    case 0: return random(1000) - 500;
    case 1: return (random(1000) - 500) / 8;
    case 2: return random(2) === 0;
    case 3: return null;
    case 4: return words[random(words.length)] + words[random(words.length)];
    case 5: return 10 ** (random(40) - 20);
    case 6: return Array.from({ length: random(4) }, () => value(depth + 1));
    default: return Object.fromEntries(Array.from({ length: random(4) }, () => [words[random(words.length)], value(depth + 1)]));
  }
};
for (let i = 0; i < 40; i++) documents.push(JSON.stringify({ a: value(0), b: value(0) }, null, random(3)));
const alphabet = '{}[]":,\\utfn0123-+.eE x"{[';
for (let i = 0; i < 400; i++) {
  const at = documents[20 + random(40)];
  const cut = random(at.length + 1);
  broken.push(at.slice(0, cut) + alphabet[random(alphabet.length)] + at.slice(cut + random(3), cut + 30));
}

const paths = (value, at = []) =>
  value === null || typeof value !== "object" ? [at] : [at, ...Object.keys(value).flatMap((key) => paths(value[key], [...at, key]))];
const read = ({ parsePartialJsonObject, getPartialJsonObjectMeta, getPartialJsonObjectFieldState }, text) => {
  const result = parsePartialJsonObject(text);
  if (result === undefined) return null;
  const { state, partialPath } = getPartialJsonObjectMeta(result);
  const fields = [...paths(result), ["missing"], ["a", "0", "b"], ["f", "length"]].slice(0, 24);
  const partial = fields.map((field) => (getPartialJsonObjectFieldState(result, field) === "partial" ? 1 : 0));
  return [JSON.stringify(result), state === "partial" ? partialPath : null, fields, partial];
};

const texts = new Set();
for (const text of documents) for (let end = 0; end <= text.length; end++) texts.add(text.slice(0, end));
for (const text of broken) texts.add(text);

const cases = [];
for (const text of texts) {
  const now = read(versions["0.3.44"], text);
  const then = read(versions["0.3.15"], text);
  cases.push(JSON.stringify(now) === JSON.stringify(then) ? [text, now] : [text, now, then]);
}
process.stdout.write(JSON.stringify({ versions: Object.keys(versions), node: process.version, cases }).replaceAll("],[\"", "],\n[\"") + "\n");
