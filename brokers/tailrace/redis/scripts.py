"""The Lua scripts: what Redis judges by itself, in one step.

Theory. A stream has three keys with one hash tag: npm's ``meta`` and ``data``, whose content is npm's affair, and a
hash of ours, the *companion*, that numbers the lives. Every script begins by reconciling the companion with what npm's
keys say now, because npm's processes acquire, end, delete and let expire without telling: a life that nobody of ours
claimed is adopted (given an incarnation and a position for its claim), one whose keys have gone is buried (given a
position for its end). So every process sees the same lives at the same positions.

Rules.

- Positions are the entries' ids (``ms-seq``). They grow over all lives of a stream: an id of ours is never below the
  companion's ``pos``, and a life that is found gone gets the position behind it.
- ``meta`` is written as npm writes it, with npm's fields alone. What is ours stands in the companion, and in fields
  of ``data`` entries that npm does not look at.
- The data outlives ``meta`` (by an hour): meta expired means to npm that there is no stream, to us that its expiry is
  to be recorded. A stream without data and meta has gone without a record.
- A release 0.3.15 that finalizes a stream with a generation writes ``meta`` without it, and its end where nobody
  reads; one that deletes such a stream deletes ``meta`` alone; one that dies while it finalizes leaves ``meta`` with
  the status and ``data`` without the end. All are put right by whoever sees them first: what ``meta`` says holds.
- Endings, deletions and heartbeats are written on a full server too: they are small, or free what is needed.
"""

from __future__ import annotations

import hashlib

_SYNC = """
local meta, own = KEYS[1], KEYS[2]
local base, id, index, keep = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local clock = redis.call('TIME')
local now = tonumber(clock[1]) * 1000 + math.floor(tonumber(clock[2]) / 1000)
local TOP, HOUR = 16777215, 3600000

local function split(at)
  local ms, seq = string.match(at, '^(%d+)-(%d+)$')
  return tonumber(ms), tonumber(seq)
end
local function join(ms, seq) return string.format('%.0f-%.0f', ms, seq) end
local function later(a, b)
  local am, as = split(a)
  local bm, bs = split(b)
  return am > bm or (am == bm and as > bs)
end
local function behind(at)
  local ms, seq = split(at)
  if seq < TOP then return join(ms, seq + 1) end
  return join(ms + 1, 0)
end
local function following(at)  -- the id of an entry that is written now
  if now > split(at) then return join(now, 0) end
  return behind(at)
end
local function before(at)
  local ms, seq = split(at)
  if seq > 0 then return join(ms, seq - 1) end
  return join(ms - 1, TOP)
end
local function place(token)
  if token == '' then return base end
  return base .. ':' .. token
end
local function first(key) return redis.call('XRANGE', key, '-', '+', 'COUNT', 1)[1] end
local function newest(key) return redis.call('XREVRANGE', key, '+', '-', 'COUNT', 1)[1] end
local function field(entry, name)
  for i = 1, #entry[2], 2 do
    if entry[2][i] == name then return entry[2][i + 1] end
  end
end

local raw = redis.call('GET', meta)
local m = nil
if raw then
  local ok, value = pcall(cjson.decode, raw)
  if not ok then  -- JavaScript writes half a surrogate pair as an escape, which is read nowhere else
    ok, value = pcall(cjson.decode, (string.gsub(raw, '\\\\u[dD][89a-fA-F]%x%x', '\\\\ufffd')))
  end
  m = (ok and type(value) == 'table') and value or {}
end
local ended = m and (m.status == 'done' or m.status == 'error')
local token = ''
if m and type(m.generation) == 'string' then token = m.generation end
local h = {}
local flat = redis.call('HGETALL', own)
for i = 1, #flat, 2 do h[flat[i]] = flat[i + 1] end

-- A full server refuses a script's first write where that takes memory, and none behind it.
local function stay() redis.call('PEXPIRE', own, math.max(tonumber(keep), (tonumber(h.ttl) or 0) + HOUR)) end
local function bury(kind, head, facts)
  stay()
  h.gpos, h.gkind, h.ginc, h.gfirst, h.gt, h.gm = h.pos, kind, h.inc, h.first, head, facts
  redis.call('HSET', own, 'gpos', h.gpos, 'gkind', kind, 'ginc', h.ginc, 'gfirst', h.gfirst, 'gt', head, 'gm', facts,
    'pos', h.pos)
  redis.call('HDEL', own, 'inc', 'tok', 'org', 'first', 'cpos', 'ttl', 'claim')
  redis.call('SREM', index, id)
  h.inc = nil
end

if h.inc then
  local key = place(h.tok)
  local head = first(key)
  local here = head and head[1] or ''
  local same = false
  if ended and token == '' and h.tok ~= '' and head then
    stay()
    m.generation, token = h.tok, h.tok
    raw = cjson.encode(m)
    redis.call('SET', meta, raw, 'KEEPTTL')
    same = true
  elseif m and token == h.tok and token ~= '' and h.org == 'own' and not head then
    redis.call('DEL', meta)
    m, raw = nil, false
  elseif m then
    same = token == h.tok and (h.first == '' or h.first == here)
  else
    same = head and (h.first == '' or h.first == here)
    local last = same and newest(key)
    if last and later(last[1], h.pos) then h.pos = last[1] end
    if same and h.tok ~= '' and now + 1000 < split(h.pos) + tonumber(h.ttl) then
      redis.call('DEL', key)
      same = false
    end
  end
  if same then
    if h.first ~= here then
      h.first = here
      redis.call('HSET', own, 'first', here)
    end
    local last = newest(key)
    if last and later(last[1], h.pos) then
      h.pos = last[1]
      stay()
      redis.call('HSET', own, 'pos', h.pos)
      if m then redis.call('PEXPIRE', key, tonumber(h.ttl) + HOUR) end
    end
  else
    local passed = now + 1000 >= split(h.pos) + tonumber(h.ttl)
    h.pos = behind(h.pos)
    bury(passed and 'expiry' or 'tombstone', '', h.claim)
  end
end

if m and not h.inc then
  local key = place(token)
  local head, last = first(key), newest(key)
  local past = tonumber(string.match(h.ginc or '', '^(%d+)-')) or 0
  local claim = head and field(head, 't')
  local life, number = string.match(claim or '', '^1;claim;((%d+)-[^;]+);')
  if head and (head[1] == h.gfirst or (life and tonumber(number) <= past)) then
    redis.call('DEL', key)  -- what is left of a life before: 0.3.15 has claimed, and is about to delete it
    head, last, life = nil, nil, nil
  end
  local ttl = (tonumber(m.ttlSec) or 86400) * 1000
  local floor = h.pos or '0-0'
  h.tok, h.first, h.ttl = token, head and head[1] or '', string.format('%.0f', ttl)
  if life then
    h.org, h.inc, h.claim, h.cpos = 'own', life, field(head, 'm'), ''
  else
    local seed = token ~= '' and token or (id .. join(now, 0) .. (head and head[1] or ''))
    h.org, h.claim = 'npm', ''
    h.inc = string.format('%.0f-%s', past + 1, string.sub(redis.sha1hex(seed), 1, 16))
    local left = redis.call('PTTL', meta)
    h.cpos = before(head and head[1] or join(now - math.max(0, left > 0 and ttl - left or 0), 0))
    if not later(h.cpos, floor) then h.cpos = behind(floor) end
  end
  h.pos = last and last[1] or h.cpos
  stay()
  redis.call('HSET', own, 'inc', h.inc, 'tok', h.tok, 'org', h.org, 'first', h.first, 'cpos', h.cpos,
    'ttl', h.ttl, 'claim', h.claim, 'pos', h.pos)
  stay()
  redis.call('SADD', index, id)
  if head then redis.call('PEXPIRE', key, ttl + HOUR) end
end

if h.inc and ended then
  local key = place(h.tok)
  local last = newest(key)
  if not (last and field(last, 'fin')) then
    stay()
    h.pos = following(h.pos)
    if m.status == 'error' then
      redis.call('XADD', key, h.pos, 'fin', 'error', 'error', m.error or 'Stream errored')
    else
      redis.call('XADD', key, h.pos, 'fin', 'done')
    end
    if h.first == '' then h.first = h.pos end
    redis.call('HSET', own, 'pos', h.pos, 'first', h.first)
    redis.call('PEXPIRE', key, tonumber(h.ttl) + HOUR)
  end
end
if not h.inc and #flat == 0 then redis.call('SREM', index, id) end  -- what was known of it has expired

local at = h.inc and h.pos or (h.gpos or '0-0')
local function view()
  return {string.format('%.0f', now), at, h.inc or '', h.inc and h.tok or '', h.inc and h.org or '', h.cpos or '',
    h.ttl or '', h.gpos or '', h.gkind or '', h.ginc or '', h.gt or '', h.gm or '', raw or ''}
end
"""

# What a replica says may be old, and it refuses writes alone. Other refusals do not concern who only looks.
_LOOK = """
local refused = redis.pcall('HDEL', KEYS[2], '')
if type(refused) == 'table' and refused.err and string.find(refused.err, 'READONLY') then return refused end
"""

_READ = """
local entries = {}
if h.inc then
  local start = ARGV[5] == '0-0' and '-' or ('(' .. ARGV[5])
  entries = redis.call('XRANGE', place(h.tok), start, '+', 'COUNT', ARGV[6])
end
return {view(), entries}
"""

_LAST = """
local entries = {}
if h.inc then
  local last = newest(place(h.tok))
  if last then
    entries = {last}
    local parts = tonumber(field(last, 'n') or 1)
    if parts > 1 then
      local found = redis.call('XREVRANGE', place(h.tok), '+', '-', 'COUNT', parts)
      entries = {}
      for i = #found, 1, -1 do entries[#entries + 1] = found[i] end
    end
  end
end
return {view(), entries}
"""

# ARGV: 5 the claims' key, 6 the expected position, 7 kind, 8 incarnation, 9 how npm's meta begins, 10 time to live in
# ms, 11 token, 12 the record's head, 13 its facts; then each entry: the number of its fields and values, and these
_APPEND = """
local kind = ARGV[7]
if ARGV[6] ~= at or (kind ~= 'claim' and ARGV[8] ~= h.inc) then return {string.format('%.0f', now), ''} end
if kind == 'claim' then
  h.inc, h.tok, h.org, h.ttl, h.claim = ARGV[8], ARGV[11], 'own', ARGV[10], ARGV[13]
  h.pos = h.pos or '0-0'
  if h.tok == '' then redis.call('DEL', base) end
end
local key = place(h.tok)
if kind ~= 'claim' and kind ~= 'chunks' then stay() end
local i = 14
while i <= #ARGV do
  local count = tonumber(ARGV[i])
  h.pos = following(h.pos)
  redis.call('XADD', key, h.pos, unpack(ARGV, i + 1, i + count))
  i = i + count + 1
end
if kind == 'tombstone' or kind == 'expiry' then
  bury(kind, ARGV[12], ARGV[13])
  redis.call('PEXPIRE', key, kind == 'expiry' and 60000 or 5000)  -- for blocked reads; a deletion is to free room
  redis.call('DEL', meta)
  return {string.format('%.0f', now), h.pos}
end
local ttl = tonumber(h.ttl)
local seconds = math.max(1, math.ceil(ttl / 1000))
local left = math.max(seconds, math.ceil((split(h.pos) + ttl - now) / 1000))  -- more where the clock went back
if kind == 'claim' then
  redis.call('HSET', own, 'inc', h.inc, 'tok', h.tok, 'org', h.org, 'first', h.pos, 'cpos', '', 'ttl', h.ttl,
    'claim', h.claim, 'pos', h.pos)
  redis.call('SADD', index, id)
  redis.call('XADD', ARGV[5], 'MAXLEN', '~', 1000, '*', 'id', id)
else
  redis.call('HSET', own, 'pos', h.pos)
end
if kind == 'chunks' and raw then
  redis.call('EXPIRE', meta, left)
else
  local text = '{' .. ARGV[9] .. ',"ttlSec":' .. string.format('%.0f', seconds)
  if h.tok ~= '' then text = text .. ',"generation":' .. cjson.encode(h.tok) end
  redis.call('SET', meta, text .. '}', 'EX', left)
end
redis.call('PEXPIRE', key, ttl + HOUR)
stay()
return {string.format('%.0f', now), h.pos}
"""

_BEAT = """
local clock = redis.call('TIME')
local now = tonumber(clock[1]) * 1000 + math.floor(tonumber(clock[2]) / 1000)
redis.call('PEXPIRE', KEYS[1], ARGV[1])  -- takes no memory: behind it a full server takes the beat
return redis.call('XADD', KEYS[1], 'MINID', '~', string.format('%.0f', now - tonumber(ARGV[1])), '*',
  'id', ARGV[2], 'beat', ARGV[3])
"""


class Script:
    """A script and the digest by which the server knows it."""

    def __init__(self, source: str) -> None:
        self.source = source.encode()
        self.sha = hashlib.sha1(self.source, usedforsecurity=False).hexdigest()


READ = Script(_LOOK + _SYNC + _READ)
LAST = Script(_LOOK + _SYNC + _LAST)
APPEND = Script(_SYNC + _APPEND)
BEAT = Script(_BEAT)
