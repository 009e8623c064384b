"""Following partitions: what is stored in them from an offset on, in order and without gaps.

Theory. A node is asked for all followed partitions at once, and keeps the request until there is something to give (or
for ``fetch_wait``). That question cannot be changed while it is kept, so a partition that is followed anew is asked for
on a lane of its own, at once; when the first lane's answer comes, it takes the other lanes' partitions over, and what
those are still answered is not looked at.

Rules. Positions are a feed's own: after a failure it goes on where it was. But a broker that lost its unsynced end has
other records there now, or none: so after a failure the last record that was seen is read again, and if it is not the
same, or the broker no longer holds the place, the feed hears `lost` (what there is now: the first offset and the end),
and goes on where that says. A feed is doubted from the failure until then, each for itself: its node may be the
only one that is away. An append without an answer may be all that is seen of such a failure: until the last record was
seen again, nothing that the node confirms is taken, nor an answer to a question from before. `take`, `lost` and
`on_back` must neither block nor raise. A partition that alone refuses to be read is on no lane until it is mended: what
cannot be read is passed over, as `reading` says.

What this process stored itself directly behind a feed's position is taken when the broker confirms it: all replicas
have it then, and nothing is between. So a process that alone writes to a partition need not wait for its own records,
and a lane that was answered with nothing else rests before it asks again, unless somebody is behind.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from aiokafka.protocol.offset import OffsetResetStrategy

from tailrace.errors import BrokerError, BrokerUnavailable
from tailrace.kafka import refusals
from tailrace.kafka.connection import FOLLOW, RETRY_PAUSE, Connection, Fetched, Place
from tailrace.kafka.feed import Feed, Lost
from tailrace.kafka.reading import Batch, Raw, Sent, batches_of, first_of, is_same, refused, served_from
from tailrace.kafka.refusals import Unanswered
from tailrace.kafka.sender import BUSY, SPACING, Item
from tailrace.kafka.sessions import FORGOTTEN, Session
from tailrace.tasks import end

REST = 0.005  # seconds that a lane asks for nothing after an answer that held nothing new
SILENCE = Fetched(0, 0, 0, b"")  # of a broker about a partition, where it has nothing new to say
LONGEST_PAUSE = 2.0  # seconds between two tries to read a partition that alone cannot be read

_log = logging.getLogger(__name__)


class _Lane:
    def __init__(self, node: int, number: int) -> None:
        self.node = node
        self.number = number
        self.feeds: dict[Place, Feed] = {}
        self.session = Session()
        self.given = self.taken = 0  # bytes of the last answer, and records in it that were news
        self.passed_over = False  # some partition was, in the last answer
        self.task: asyncio.Task[None] | None = None


class Feeds:
    """All followed partitions of one connection. ``away``: some partition is not answered for."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        connection.unconfirmed = self._unconfirmed
        self._lanes: list[_Lane] = []
        self._joining: list[Feed] = []
        self._seeking: asyncio.Task[None] | None = None
        self._feeds: dict[Place, Feed] = {}
        self._resting: set[asyncio.Future[None]] = set()
        self._mending: set[asyncio.Task[None]] = set()
        self._closed = False
        self.away = False

    async def follow(self, place: Place, take: Callable[[Batch], None], lost: Lost, start: int | None = None) -> Feed:
        """Follow a partition from offset ``start`` on (None: from its end as it is now). Raises `BrokerUnavailable`."""
        position = await self._connection.end(place) if start is None else start
        feed = Feed(place, position, take, lost, self._hurry)
        feed.unanchored = start is None and position > 0
        self._feeds[place] = feed
        self._place(feed)
        return feed

    def drop(self, feed: Feed) -> None:
        """Follow it no more."""
        if self._feeds.get(feed.place) is feed:
            del self._feeds[feed.place]
        if feed in self._joining:
            self._joining.remove(feed)
        for lane in self._lanes:
            if lane.feeds.get(feed.place) is feed:
                del lane.feeds[feed.place]

    def stored(self, place: Place, base: int, time_ms: int, items: Sequence[Item]) -> None:
        """All replicas have these records of this process, from offset ``base`` on."""
        feed = self._feeds.get(place)
        if feed is None or feed.position > base:
            return
        if feed.position < base or feed.in_doubt or time_ms < 0:
            feed.want(base + len(items))  # others' records are before them, or may be
            return
        records: list[Raw] = [
            Sent(base + n, time_ms, item.key, item.value, item.headers, item.meant) for n, item in enumerate(items)
        ]
        feed.unanchored = False
        feed.took(Batch(records, base + len(items)))

    def _unconfirmed(self, node: int) -> None:
        """What the node confirms from now on may stand behind others' records, in the place of those that it lost."""
        for feed in self._feeds.values():
            if feed.last is not None and self._connection.leader(feed.place) == node:
                feed.unproven = True
        for lane in self._lanes:
            if lane.node == node:
                lane.session.reset()  # of what is as it was, a session says nothing

    def _hurry(self) -> None:
        """No lane may rest now."""
        for rest in self._resting:
            _wake(rest)

    async def _rest(self, lane: _Lane) -> None:
        """Wait for `REST` seconds, or until somebody is behind."""
        if any(feed.position < feed.wanted for feed in lane.feeds.values()):
            return
        loop = asyncio.get_running_loop()
        rest: asyncio.Future[None] = loop.create_future()
        timer = loop.call_later(REST, _wake, rest)
        self._resting.add(rest)
        try:
            await rest
        finally:
            timer.cancel()
            self._resting.discard(rest)

    def _place(self, *feeds: Feed) -> None:
        self._joining.extend(feeds)
        asyncio.get_running_loop().call_soon(self._find_places)  # what one turn of the loop adds goes together

    def _find_places(self) -> None:
        """Give each feed that has none a lane at the node that leads its partition."""
        if self._closed:
            return
        joining, self._joining = self._joining, []
        for feed in joining:
            node = self._connection.leader(feed.place)
            if node is None:
                self._joining.append(feed)
            else:
                self._lane(node).feeds[feed.place] = feed
        for lane in self._lanes:
            if lane.task is None:
                lane.task = asyncio.create_task(self._run(lane), name=f"tailrace-feed-{lane.number}")
        if self._joining and self._seeking is None:
            self._seeking = asyncio.create_task(self._seek())

    async def _seek(self) -> None:
        """Ask who leads the partitions that nobody is known to lead. Those that join meanwhile do not wait for that."""
        try:
            await self._connection.relearn()
            await asyncio.sleep(RETRY_PAUSE)
        finally:
            self._seeking = None
            self._find_places()

    def _lane(self, node: int) -> _Lane:
        """A lane to the node that has not asked yet."""
        for lane in self._lanes:
            if lane.node == node and lane.task is None:
                return lane
        taken = {lane.number for lane in self._lanes}
        number = next(number for number in range(FOLLOW, FOLLOW + len(taken) + 1) if number not in taken)
        self._lanes.append(lane := _Lane(node, number))
        return lane

    async def _run(self, lane: _Lane) -> None:
        loop = asyncio.get_running_loop()
        try:
            while lane.feeds:
                starts, began = {place: feed.asks_from for place, feed in lane.feeds.items()}, loop.time()
                try:
                    answer = await self._ask(lane, starts)
                except (BrokerUnavailable, Unanswered) as error:
                    await self._failed(lane, error)
                    continue
                answered = lane.session.answered(answer)
                if answered is None:
                    if answer.error_code not in FORGOTTEN:
                        await self._failed(lane, refusals.of(answer.error_code, f"fetch at {self._connection}"))
                    continue
                moved, lane.given, lane.taken, lane.passed_over = False, 0, 0, False
                for place, feed in tuple(lane.feeds.items()):
                    if feed is not lane.feeds.get(place) or (feed.in_doubt and feed.asks_from < starts[place]):
                        continue
                    if place in answered or feed.asks_from < feed.high:
                        moved |= await self._took(lane, feed, answered.get(place) or SILENCE._replace(high=feed.high))
                self._answered_again()
                if moved:
                    await asyncio.sleep(RETRY_PAUSE)
                    await self._connection.relearn()
                    self._leave(lane)
                self._take_over(lane)
                if lane.taken >= BUSY:  # under load fewer and larger answers cost everybody less
                    await asyncio.sleep(max(0.0, began + SPACING - loop.time()))
                elif lane.given and not lane.taken:
                    await self._rest(lane)
        except Exception:  # noqa: BLE001  # without its lane, whoever follows would wait for ever
            _log.exception("a lane failed")
            for feed in lane.feeds.values():
                feed.doubted = True
            await asyncio.sleep(1)
            self._leave(lane)
        finally:
            self._lanes.remove(lane)
            self._connection.hang_up(lane.node, lane.number)

    async def _ask(self, lane: _Lane, starts: Mapping[Place, int]) -> Any:
        options = self._connection.options
        at_once = lane.passed_over or any(feed.in_doubt for feed in lane.feeds.values())
        wait = 0 if at_once else options.fetch_wait
        question = lane.session.question(starts, int(wait * 1000))
        return await self._connection.request(lane.node, question, lane.number, wait + options.request_timeout)

    async def _failed(self, lane: _Lane, error: Exception) -> None:
        if not self.away:
            _log.warning("the broker does not answer: %s", error)
        self.away = True
        lane.session.reset()
        for feed in lane.feeds.values():
            feed.doubted = True
        await asyncio.sleep(RETRY_PAUSE)
        await self._connection.relearn()
        self._leave(lane)

    def _answered_again(self) -> None:
        if self.away and not any(feed.doubted for feed in self._feeds.values()):
            self.away = False
            _log.info("the broker answers again")

    def _leave(self, lane: _Lane) -> None:
        """Another node may lead: the lane's feeds look for their places anew."""
        feeds = list(lane.feeds.values())
        lane.feeds.clear()
        self._place(*feeds)

    def _take_over(self, lane: _Lane) -> None:
        """The first lane to a node takes the others' partitions."""
        if next(each for each in self._lanes if each.node == lane.node) is lane:
            for other in self._lanes:
                if other is not lane and other.node == lane.node and other.task is not None:
                    lane.feeds.update(other.feeds)
                    other.feeds.clear()

    async def _took(self, lane: _Lane, feed: Feed, fetched: Fetched) -> bool:
        """Take what a partition gave. True where it is to be looked for elsewhere."""
        if fetched.error in refusals.MOVED:
            return True
        is_gone, is_refused = fetched.error == refusals.OFFSET_OUT_OF_RANGE, refused(fetched, feed.asks_from)
        if is_gone and self._connection.leader(feed.place) != lane.node:
            return True  # one that leads no more, and may not know it, holds less than who does
        if is_refused and not fetched.error and not feed.passed_over:
            feed.high, feed.passed_over, lane.passed_over = fetched.high, True, True
            return False  # the answer was full, or the user's quota is used up: once says nothing
        feed.passed_over = False
        if (is_gone or is_refused) and feed.unanchored and not feed.in_doubt:
            feed.unanchored = False  # the last record is too old to be kept, or damaged
            return False
        if is_gone:
            await self._restart(feed)
            return False
        if fetched.error or is_refused:
            feed.high = 0
            del lane.feeds[feed.place]
            self._mending.add(task := asyncio.create_task(self._mend(feed), name=f"tailrace-mend-{feed.place}"))
            task.add_done_callback(lambda done: self._mended(feed, done))
            return False
        if feed.in_doubt and (feed.unanchored or not self._is_the_same(feed, fetched)):
            await self._restart(feed, fetched.high)
            return False
        if feed.unanchored:
            feed.last, feed.unanchored = first_of(fetched, feed.position - 1), False
        self._trust(feed)
        feed.high = fetched.high
        lane.given += len(fetched.data)
        for batch in batches_of(fetched.data, feed.position, fetched.high):
            if batch.unreadable is not None:
                self._connection.damage(feed.place, batch.unreadable)
            if batch.records:
                self._connection.clock.see(batch.records[-1].timestamp)
            lane.taken += len(batch.records)
            feed.took(batch)
        return False

    async def _mend(self, feed: Feed) -> None:
        """Go on where a partition that refuses to be read can be; the others do not wait for that."""
        pause, told = RETRY_PAUSE, False
        while self._feeds.get(feed.place) is feed and not self._closed:
            start = feed.asks_from
            try:
                found = await served_from(self._connection, feed.place, start)
            except BrokerError as error:
                feed.doubted |= isinstance(error, BrokerUnavailable)
                if not told:
                    _log.warning("a partition cannot be read: %s", error)
                pause, told = min(2 * pause, LONGEST_PAUSE), True
                await asyncio.sleep(pause)
                continue
            if feed.in_doubt and start < min(found, feed.position):
                await self._restart(feed)
            elif feed.position < found:
                self._connection.damage(feed.place, (feed.position, found))
                feed.took(Batch([], found, (feed.position, found)))
            return

    def _mended(self, feed: Feed, task: asyncio.Task[None]) -> None:
        self._mending.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("a partition was not mended", exc_info=error)
        if self._feeds.get(feed.place) is feed:
            self._place(feed)

    @staticmethod
    def _is_the_same(feed: Feed, fetched: Fetched) -> bool:
        """Whether the broker still has the last record that was seen, where it was."""
        if feed.last is None:
            return fetched.high >= feed.position
        found = first_of(fetched, feed.last.offset)
        return found is not None and is_same(found, feed.last)

    @staticmethod
    def _trust(feed: Feed) -> None:
        feed.unproven = False
        if feed.doubted:
            feed.doubted = False
            if feed.on_back is not None:
                feed.on_back()

    async def _restart(self, feed: Feed, high: int | None = None) -> None:
        """What the feed read is gone: go on at the end. Records that merely grew old are no loss; nor is it one where a
        new leader had given ``high`` as its end, and does not know yet how much of what it has may be read."""
        try:
            found = await self._connection.offsets([feed.place], OffsetResetStrategy.EARLIEST)
            end = await self._connection.end(feed.place)
        except BrokerError:
            feed.doubted = True
            return
        first, seen = found[feed.place], feed.position if feed.last is None else feed.last.offset + 1
        if high is not None and high < seen <= end and first < seen:
            await asyncio.sleep(RETRY_PAUSE)
            return
        if feed.in_doubt and feed.last is not None and feed.last.offset < first <= feed.position <= end:
            feed.last = None  # it aged out, and nothing else changed
            self._trust(feed)
            return
        _log.warning("%s lost records: it holds %d to %d, and %d was next", feed.place, first, end, feed.position)
        feed.last, feed.wanted = None, 0
        self._trust(feed)
        feed.moved(feed.lost(first, end))
        feed.unanchored = feed.position == end > first

    async def close(self) -> None:
        """Stop. A second call does nothing."""
        self._closed = True
        tasks = [*self._mending, *(lane.task for lane in self._lanes if lane.task is not None)]
        if self._seeking is not None:
            tasks.append(self._seeking)
        await end(*tasks)


def _wake(rest: asyncio.Future[None]) -> None:
    if not rest.done():
        rest.set_result(None)
