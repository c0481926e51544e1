//! Every bound of Chappe, beside its reason and what happens at the brim.
//!
//! Bytes are bytes, times are milliseconds; a unit ends the name where it is not a plain count.

/// 2¹² = 4096 partitions: fine enough that a node's fair share is exact to 1 % at 50 nodes, small enough that the
/// map of owners is one short message. Fixed for the life of a cluster but for doubling.
pub const PARTITION_BITS: u32 = 12;

/// Longest user id. A JWT's `sub` is rarely longer; keys and fan-out lists are made of it. Longer: refused.
pub const USER_ID_BYTES_MAX: usize = 128;

/// Longest device id. Longer: refused.
pub const DEVICE_ID_BYTES_MAX: usize = 64;

/// Largest body of a message. 8192 rows of this size are one bucket of 512 MiB in the cluster's store, the most a
/// partition there should hold. Larger: `message.too_large`; larger content is an attachment.
pub const BODY_BYTES_MAX: usize = 64 * 1024;

/// Deepest nesting of a body. Clients' decoders in every language manage this without care. Deeper: refused.
pub const BODY_DEPTH_MAX: usize = 32;

/// Users whom one message may mention one by one. Whoever means more means everybody (`all`). Counting a member's
/// mentions looks a name up in each of these lists. More: refused.
pub const MENTIONS_MAX: usize = 50;

/// Largest frame a client may send: the largest body, escaped to six bytes a character in the worst case, would be
/// larger, but a body is counted as it is sent. The rest is envelope. Larger: an error frame, then close 1009.
pub const FRAME_BYTES_MAX: usize = BODY_BYTES_MAX + 16 * 1024;

/// Most that an unauthenticated connection may send before it is closed: enough for a token and 200 positions.
pub const UNAUTHENTICATED_BYTES_MAX: usize = 64 * 1024;

/// How long a connection may stay without `connect`. Longer: closed with `auth.required`.
pub const UNAUTHENTICATED_MS_MAX: u64 = 10_000;

/// Largest HTTP request body: a message with its envelope. Larger: 413.
pub const REQUEST_BYTES_MAX: usize = FRAME_BYTES_MAX;

/// Longest conversation title. Longer: refused.
pub const TITLE_BYTES_MAX: usize = 256;

/// Largest application data of a conversation (a JSON object). Travels with every `conversation.get`.
pub const DATA_BYTES_MAX: usize = 4 * 1024;

/// Shortest time for which messages of a conversation may be kept: each part of an hour that is removed costs an event, and
/// who was away for a minute would find nothing. Less: refused.
pub const RETENTION_SECS_MIN: u32 = 60;

/// Longest time, a hundred years: whoever means for ever says so. More: refused.
pub const RETENTION_SECS_MAX: u32 = 100 * 366 * 24 * 3600;

/// What is overdue is removed together: at the latest when so much of the time for which it was to be kept has passed once
/// more. So a conversation that is always busy has 32 floors in that time, each of which costs an event.
pub const RETENTION_PARTS: u64 = 32;

/// And at the latest after a day.
pub const RETENTION_LATE_MS_MAX: u64 = 24 * 3600 * 1000;

/// How often conversations that nobody uses are looked at for what is overdue, at most: each costs a read of its snapshot.
pub const RETENTION_WALK_MS: u64 = 3600 * 1000;

/// And how often where nothing is kept for a time only, as far as the last look has shown.
pub const RETENTION_WALK_SELDOM_MS: u64 = 24 * 3600 * 1000;

/// Nothing is removed before the clock has gone evenly for so long: one that is wrong for a moment costs no history.
pub const CLOCK_STEADY_MS: u64 = 60 * 1000;

/// Ids are remembered for so long after the history that holds them was removed: longer than any of them may be sent again
/// ([`ID_AGE_MS_MAX`], and what ids may be ahead of the clock).
pub const PURGED_IDS_KEPT_MS: u64 = ID_AGE_MS_MAX + 24 * 3600 * 1000;

/// Longest idempotency key of a creation.
pub const KEY_BYTES_MAX: usize = 128;

/// Most members named in one creation: such an event is still a row of ordinary size. More are added later.
pub const CREATE_MEMBERS_MAX: usize = 1_000;

/// Most members of a group, where everybody writes: what 10,000 people say is more than anybody reads. More:
/// `member.limit`; larger audiences are channels.
pub const GROUP_MEMBERS_MAX: usize = 10_000;

/// Most members of a channel. They take some 15 MiB of its owner's memory while it is in use, which is what bounds them:
/// messages cost the same however many there are. More: `member.limit`.
pub const CHANNEL_MEMBERS_MAX: usize = 100_000;

/// Users who may ever have been members of one conversation, in multiples of its members at a time: what is remembered of
/// those who left (which part of the history was theirs, who was removed) is bounded too. More: `member.limit` for whoever is new.
pub const FORMER_MEMBERS_FACTOR: usize = 2;

/// Stays of one member of which is remembered which part of the history they cover. At the brim the earliest is forgotten:
/// who leaves and joins again and again sees no more of it.
pub const STAYS_MAX: usize = 64;

/// Above this many members, present and past, each has a row of their own in the store: a snapshot with all of them inside
/// stays below 128 KiB, and a change of one does not write the others again.
pub const SNAPSHOT_MEMBERS_MAX: usize = 1_024;

/// Members' rows that are read at once when such a conversation is recovered, some 100 bytes each.
pub const MEMBER_ROWS_PAGE: usize = 4_096;

/// Members' rows that are written by one call.
pub const MEMBER_ROWS_TOGETHER: usize = 256;

/// Above this many members (and every channel) a conversation is delivered through gateways' interest instead of each member's
/// user entity: below, one list of recipients is cheaper than a registry; above, work per member and message is too much.
pub const SMALL_MEMBERS_MAX: usize = 256;

/// Members per page of `member.list`.
pub const MEMBERS_PAGE_MAX: usize = 500;

/// Messages or events per page, asked for.
pub const PAGE_MAX: usize = 200;

/// Messages or events per page, when the client does not say.
pub const PAGE_DEFAULT: usize = 50;

/// Bytes after which a page ends early (it always holds at least one event): bounded memory per request.
pub const PAGE_BYTES_MAX: usize = 256 * 1024;

/// Longest key of a reaction: the longest emoji of today (a family, a flag of a region) takes 35 bytes, and names of an
/// application's own pictures are no longer. Longer: refused.
pub const REACTION_KEY_BYTES_MAX: usize = 64;

/// Most different keys on one message: the counts of all of them travel with every page that shows it, and a row of them
/// is written with every batch of reactions. More: `reaction.limit`.
pub const REACTION_KEYS_MAX: usize = 50;

/// Most keys of one user on one message: one person cannot use up a message's. More: `reaction.limit`.
pub const REACTION_KEYS_PER_USER_MAX: usize = 20;

/// Users per page of `reaction.list`.
pub const REACTIONS_PAGE_MAX: usize = 200;

/// Users whom one connection watches: what screens show, several times over. More: refused.
pub const PRESENCE_WATCHES_MAX: usize = 200;

/// Watchers of one user who are told of every change. Whoever comes later learns of changes when their watch is
/// renewed: late, and never not at all.
pub const PRESENCE_WATCHERS_MAX: usize = 1_000;

/// How long a watch lasts that is not renewed: whoever renews it may have gone without a word.
pub const PRESENCE_EXPIRES_MS: u64 = 60_000;

/// How often the watchers' owners renew watches, with what they know: three times before one is over. Whatever got lost
/// is said again then.
pub const PRESENCE_RENEWED_MS: u64 = 20_000;

/// How long a user without connections still counts as there: a phone that changes from one network to another takes
/// less.
pub const PRESENCE_GRACE_MS: u64 = 20_000;

/// At most one change of one user is told in this time: the last.
pub const PRESENCE_PAUSE_MS: u64 = 2_000;

/// Words about presence that one shard says in a second, one to each watcher. At some 10 µs each, with their way to the
/// socket, that is at most a twenty-fifth of a core. More is due: it is told in the next second, as it stands then.
pub const PRESENCE_EVENTS_S_MAX: usize = 4_000;

/// A connection that asks for nothing for this long counts as one where nobody is at hand.
pub const PRESENCE_IDLE_MS: u64 = 5 * 60_000;

/// How exactly a restart remembers when a user was last seen: at most one row of the user's log in this time.
pub const LAST_SEEN_ROW_MS: u64 = 60 * 60_000;

/// Who said that they are writing is, for this long: longer than people think between two words.
pub const TYPING_MS: u64 = 6_000;

/// How often whoever goes on writing should say so, and how often others are told so again: who opens the conversation
/// meanwhile waits no longer.
pub const TYPING_REPEAT_MS: u64 = 3_000;

/// At most one change of one writer in one conversation is told in this time: the last.
pub const TYPING_PAUSE_MS: u64 = 1_000;

/// People who are shown as writing in one conversation: more than anybody reads. More: not shown.
pub const TYPING_USERS_MAX: usize = 16;

/// Above this many members nobody sees how far the others have got: everybody who reads would be told to everybody else, which
/// grows with the square, and "read by 312 of 4,000" is not what anybody asks. Members' own counts go on.
pub const RECEIPTS_MEMBERS_MAX: usize = SMALL_MEMBERS_MAX;

/// Conversations of which one `receipt.put` may tell: as many as one `connect` holds positions in. More: refused.
pub const RECEIPTS_BATCH_MAX: usize = 200;

/// Members per page of `receipt.list`: all that there can be.
pub const RECEIPTS_PAGE_MAX: usize = RECEIPTS_MEMBERS_MAX;

/// The members of one conversation hear no more often of what has moved, however many read at once. The first word of a
/// quiet conversation does not wait.
pub const RECEIPTS_PACE_MS: u64 = 250;

/// Of so many events that a shard has committed, one row may be written to keep receipts: 1.6 % more rows. What the budget
/// has no room for waits in memory.
pub const RECEIPTS_EVENTS_PER_ROW: u64 = 64;

/// Rows that may be written to keep receipts in every second, however little is said: so few cost nothing.
pub const RECEIPTS_ROWS_PER_TICK: u64 = 4;

/// Conversations per page of the inbox, asked for.
pub const INBOX_PAGE_MAX: usize = 200;

/// Most of the last message's text that a row of the inbox shows: two lines on a phone. An idle conversation keeps it in
/// memory. Longer: cut, with an ellipsis.
pub const PREVIEW_BYTES_MAX: usize = 120;

/// Runs of deleted messages that a conversation remembers for counts of unread ones, 16 bytes each. Pruned by what has been
/// read; at the brim the oldest quarter goes, and counts of whoever has not read that far are lower bounds that say so.
pub const MARKED_RUNS_MAX: usize = 256;

/// Messages with mentions that a conversation remembers for counts, for the same reason and with the same brim.
pub const MARKED_MENTIONS_MAX: usize = 512;

/// Conversations that one user may pin. More than a screen holds would pin nothing. More: `inbox.pinned_limit`.
pub const PINNED_MAX: usize = 50;

/// Places of the list that one page with a filter looks at: bounded work where few conversations pass it. At the brim the
/// page ends early, with a cursor for the rest.
pub const INBOX_LOOKS_MAX: usize = 2_000;

/// Conversations which a user has left that `inbox.sync` still tells of. At the brim the one left first is forgotten,
/// and cursors from before that are answered `reset`.
pub const LEFT_KEPT_MAX: usize = 1_000;

/// Ids of a user's own last commands that are remembered, so that a late repetition does not undo what came between.
/// Older ones, repeated, set what they say once more.
pub const USER_COMMANDS_KEPT: usize = 64;

/// Conversations of one user whose owners are asked at once where they stand, after a load: the rest wait their turn.
pub const HEADS_ASKED_MAX: usize = 256;

/// How long a list or a sync waits until every conversation of the user has been asked where it stands. Longer (right after a
/// restart, with very many): it is answered with what is known, and says `settling`.
pub const SETTLING_MS_MAX: u64 = 1_000;

/// How often the owners of a user's large conversations are asked for their heads, which do not come by themselves.
pub const LARGE_HEADS_MS: u64 = 1_000;

/// Conversations of one shard of which it is remembered, while they are not in memory, where their members live, some 60 bytes
/// each. Only those of the last five minutes: should news on their way be lost, their heads are said again.
pub const RECENT_CONVERSATIONS_MAX: usize = 65_536;

/// Conversations that may move on while a user is not in memory, before all are asked again when the user returns.
pub const MISSED_MAX: usize = 256;

/// Users of one shard of whom it is remembered what they missed, some 100 bytes each. At the brim the one who has been
/// away longest is forgotten: when they return, all their conversations are asked.
pub const RESTING_USERS_MAX: usize = 65_536;

/// Positions in one `connect`: the rest of a client's conversations come through the inbox.
pub const POSITIONS_MAX: usize = 200;

/// Conversations without a position that `connect` reports: what a first screen shows.
pub const CONNECT_INBOX_MAX: usize = 50;

/// Events that a resume pushes per conversation. More missing: `limited`, and the client fetches a range.
pub const CATCH_UP_EVENTS_MAX: u64 = 1_000;

/// An owner never issues seq `s` before `s − WINDOW` is committed; also the bound of an entity's waiting commands.
/// At the brim: `overloaded`.
pub const WINDOW: u64 = 256;

/// Commands that may wait in one shard, over all entities. At the brim: `overloaded` with a hint.
/// At 2 µs a command this is a tenth of a second of work.
pub const SHARD_QUEUE_MAX: usize = 65_536;

/// Commands of one connection in flight. At the brim reading from that connection stops until one is answered.
pub const CONNECTION_IN_FLIGHT_MAX: usize = 64;

/// What one command that asks for a page counts for among those in flight: four pages of the largest size are as much
/// as may wait for one connection's writer.
pub const PAGE_IN_FLIGHT_WEIGHT: usize = 16;

/// Conversations that one connection may have open: what fits on screens, many times over. More: refused until one
/// is closed.
pub const OPEN_CONVERSATIONS_MAX: usize = 256;

/// Refused requests of one connection, less those accepted since, after which `rate.limited` closes it: a client that
/// heeds `retry_after_ms` never gets there.
pub const RATE_LIMITED_MAX: u32 = 256;

/// How long the other side of a closing connection may take to say goodbye. Longer: it is dropped.
pub const CLOSING_MS_MAX: u64 = 3_000;

/// Batches of events of large conversations that may wait for one delivery task. At the brim only the newest head of
/// a batch is kept, and listeners are told `resync`.
pub const DELIVERY_QUEUE_MAX: usize = 4_096;

/// Frames waiting for one connection's writer. At the brim the waiting events are dropped and the client is told
/// `resync`: dense seqs make dropping safe.
pub const OUTBOX_FRAMES_MAX: usize = 256;

/// Things of which a last value may wait for one connection's writer (how a conversation is read, for example). At the brim
/// the oldest is dropped: such values may get lost, and clients notice by other means.
pub const EPHEMERALS_MAX: usize = 64;

/// Bytes waiting for one connection's writer, shared ones included: one slow reader holds no more than this, plus
/// one page that it asked for.
pub const OUTBOX_BYTES_MAX: usize = 1024 * 1024;

/// Bytes of frames that are one connection's own (pages, replies) waiting for its writer. At the brim reading stops.
pub const OUTBOX_OWN_BYTES_MAX: usize = 64 * 1024;

/// A connection whose socket takes nothing for this long is closed with `slow_consumer`; it can resume.
pub const STALLED_MS_MAX: u64 = 30_000;

/// An answer over HTTP or gRPC of which nothing is taken for this long is given up. Longer than a WebSocket's: what is seen
/// here is that a client has room again, and clients say so when half of their window is free, so a phone that gets 4 kbit/s
/// is heard from every minute. Over HTTP/2 its stream is reset, over HTTP/1.1 the connection ends.
pub const ANSWER_STALLED_MS_MAX: u64 = 60_000;

/// What unread answers of one HTTP/2 connection hold together: sixteen pages of the largest size, or as many of an
/// ordinary one as there can be requests. More: whatever else is asked there waits for its turn.
pub const ANSWERS_HELD_BYTES_MAX: usize = 4 * 1024 * 1024;

/// What is read of a request's body that nobody wants, after it was refused: clients that are still sending may take the end
/// of their stream or connection for an error and lose the answer. More: the rest is not read.
pub const UNREAD_BODY_BYTES_MAX: usize = 1024 * 1024;

/// How long that goes on over HTTP/2, where it costs one of the connection's streams.
pub const UNREAD_BODY_MS_MAX: u64 = 5_000;

/// How often the server says something to a silent client, and how often it expects to hear from one (twice this
/// long without a sign of life: closed). Below the 30 s after which common proxies drop silent connections.
pub const HEARTBEAT_MS: u64 = 25_000;

/// Connections of one user. At the brim the newest is refused (`connection.limit`).
pub const USER_CONNECTIONS_MAX: usize = 100;

/// Log-outs of single devices and tokens that a user's state keeps. At the brim the oldest becomes a log-out of all
/// devices: tokens as old as that are refused from everywhere, never less than was asked for.
pub const ACCESS_MARKS_MAX: usize = 64;

/// Ids of log-outs and bans that a user's state knows again. An older one that is sent once more takes effect once more.
pub const ACCESS_IDS_MAX: usize = 32;

/// Longest reason of a ban. Longer: refused.
pub const REASON_BYTES_MAX: usize = 256;

/// How long a gateway may believe what it knows of a user's log-outs and ban without asking the user's owner again, since
/// it asked. Changes are pushed to every gateway at once; this is for a push that was lost. Together with the
/// deadline of a request it stays below the 30 s that are promised.
pub const ACCESS_STALE_MS_MAX: u64 = 15_000;

/// Users whose log-outs and bans one gateway remembers. At the brim whoever has been known longest is forgotten and asked
/// for again: a round trip, nothing else.
pub const ACCESS_CACHE_MAX: usize = 65_536;

/// How long a connection may outlive its token.
pub const TOKEN_OUTLIVED_MS_MAX: u64 = 30_000;

/// A command that is not answered by then is answered `outcome_unknown`; the same id may be sent again.
pub const COMMAND_DEADLINE_MS: u64 = 10_000;

/// How far ahead of the server's clock a command id's time may be. Further: `message.bad_id`.
pub const ID_AHEAD_MS_MAX: u64 = 5 * 60 * 1000;

/// For how long the same id gives the same answer. Older: `message.id_expired`, refused and never doubled.
pub const ID_AGE_MS_MAX: u64 = 30 * 24 * 60 * 60 * 1000;

/// Events whose ids one durable block holds.
pub const ID_BLOCK_EVENTS: u64 = 256;

/// A snapshot is written every so many events of an entity: recovery reads at most about this many rows.
pub const SNAPSHOT_EVENTS: u64 = 512;

/// An entity that goes idle writes a snapshot when its tail is at least this long: 1 row in 32, which keeps the
/// rows per message under 1.05; a shorter tail is cheaper to read again than to write once more.
pub const IDLE_SNAPSHOT_EVENTS: u64 = 32;

/// Events of one entity in one append. More: the next append takes them.
pub const APPEND_EVENTS_MAX: usize = 64;

/// Bytes of one entity in one append.
pub const APPEND_BYTES_MAX: usize = 256 * 1024;

/// Change numbers that a user entity reserves at once, by one event in its own log.
pub const CHANGES_BLOCK: u64 = 1_024;

/// Questions that may wait while one partition changes hands (100 ms when all goes well). More: the rest of their queue is
/// sent again by its gateway.
pub const PARTITION_PARKED_MAX: usize = 1_000;

/// How long a sealed partition waits for what is on its way to the log. Whatever is not known to be written by then is
/// found by the successor, who reads the log for it.
pub const SEAL_MS_MAX: u64 = 100;

/// An owner that has not read its fence as clean for this long answers `unavailable`: it may have been superseded, and
/// its clients should not wait for it.
pub const FENCE_UNREAD_MS_MAX: u64 = 2_000;

/// Entities of one partition that a planned move hands over in memory. The others are read from the log on first use.
pub const MOVE_ENTITIES_MAX: usize = 4_096;

/// Bytes of one partition that a planned move hands over in memory; whatever is beyond is read from the log, too. One message
/// between nodes holds them.
pub const MOVE_BYTES_MAX: usize = 8 << 20;

/// Recoveries that run at once. More wait: after a restart the store is not swamped.
pub const RECOVERIES_MAX: usize = 256;

/// Panics of one entity within a minute after which it is quarantined.
pub const PANICS_PER_MINUTE_MAX: usize = 3;

/// Unknown fields that a reply names.
pub const IGNORED_MAX: usize = 16;

/// Most partitions of a cluster: above 250 nodes 4096 would make a fair share uneven; this many rows of the map still
/// travel as one message. More: refused.
pub const PARTITIONS_MAX: u32 = 16_384;

/// Nodes with a live session. Four times what the partitions are meant for. At the brim: a registration is refused.
pub const NODES_MAX: usize = 1_024;

/// Longest name of a zone. Longer: a registration is refused.
pub const ZONE_BYTES_MAX: usize = 64;

/// Largest weight of a node. Shares are proportions, so no more is needed. Larger: a registration is refused.
pub const WEIGHT_MAX: u16 = 1_000;

/// Expired sessions whose fence nobody has confirmed yet. Nodes that start again and again while the store is away
/// make one each. At the brim: registrations are refused until fences are written; expiries never are.
pub const UNFENCED_MAX: usize = 4_096;

/// Fenced sessions that the map still remembers, so that a node which is behind finds what it has to warm up.
/// At the brim the oldest is forgotten.
pub const FENCED_MAX: usize = 64;

/// Nodes that left for good and are never taken in again under the same number, 9 bytes of the map each. At the brim: no node can be
/// decommissioned; one that is stopped instead is only never seen again.
pub const RETIRED_MAX: usize = 16_384;

/// Earlier owners of a partition that the map names: what they did last is warmed up by the next. At the brim the
/// oldest is forgotten; its entities are recovered when they are first asked for.
pub const FORMER_OWNERS_MAX: usize = 16;

/// Partitions that move together in one plan: sealed at once, they pause for the time of one exchange. More: refused.
pub const PLAN_MOVES_MAX: usize = 32;

/// Ordered streams each way on one connection between two of our processes. Partitions share them: enough that one slow
/// consumer holds few others up, few enough that a batch is still one write.
pub const LINK_LANES: u8 = 16;

/// Largest frame, question or answer between two of our processes: a page, a snapshot, a batch of bodies. Larger: not sent;
/// one that arrives breaks the connection.
pub const LINK_FRAME_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Frames that wait for their streams on one connection, in bytes: what a peer may leave lying while it stands still for as
/// long as it takes to notice. More: the connection is broken, and whoever waits hears of it.
pub const LINK_QUEUED_BYTES_MAX: usize = 32 * 1024 * 1024;

/// Questions under way on one connection, each way. More: not asked.
pub const LINK_QUESTIONS_MAX: usize = 1_024;

/// Questions of one connection that are being read or answered, in bytes. More: they wait for those before.
pub const LINK_QUESTION_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Received bytes of one connection that nobody has read yet. More: its peer has to wait.
pub const LINK_UNREAD_BYTES_MAX: u32 = 32 * 1024 * 1024;

/// Received bytes of one lane that nobody has read yet: all lanes but one may stand still, and the last one goes on.
pub const LINK_LANE_UNREAD_BYTES_MAX: u32 = 2 * 1024 * 1024;

/// From the first packet of another process to its accepted introduction. Longer: refused.
pub const LINK_HANDSHAKE_MS_MAX: u64 = 5_000;

/// Handshakes under way at one endpoint. More: refused before anything is computed.
pub const LINK_HANDSHAKES_MAX: usize = 256;

// Bounds that lean on each other.
const _: () = {
    assert!(FRAME_BYTES_MAX > BODY_BYTES_MAX + DATA_BYTES_MAX);
    assert!(APPEND_BYTES_MAX >= BODY_BYTES_MAX);
    assert!(WINDOW as usize >= APPEND_EVENTS_MAX);
    assert!(SNAPSHOT_EVENTS >= ID_BLOCK_EVENTS);
    assert!(PAGE_DEFAULT <= PAGE_MAX);
    assert!(MARKED_RUNS_MAX >= 4 && MARKED_MENTIONS_MAX >= 4);
    assert!(PARTITIONS_MAX.is_power_of_two() && 1 << PARTITION_BITS <= PARTITIONS_MAX);
    // A partition's number is a u16.
    assert!(PARTITIONS_MAX <= 1 << 16);
    assert!(UNFENCED_MAX >= NODES_MAX);
    assert!(CREATE_MEMBERS_MAX <= GROUP_MEMBERS_MAX && GROUP_MEMBERS_MAX <= CHANNEL_MEMBERS_MAX);
    assert!(SMALL_MEMBERS_MAX <= SNAPSHOT_MEMBERS_MAX);
    assert!(2 * PRESENCE_RENEWED_MS < PRESENCE_EXPIRES_MS);
    // One change of a user is told within a second, whoever watches.
    assert!(PRESENCE_WATCHERS_MAX <= PRESENCE_EVENTS_S_MAX);
    assert!(TYPING_PAUSE_MS < TYPING_REPEAT_MS && TYPING_REPEAT_MS < TYPING_MS);
    assert!(REACTION_KEYS_PER_USER_MAX < REACTION_KEYS_MAX);
    // They travel through users' entities, not to listeners.
    assert!(RECEIPTS_MEMBERS_MAX <= SMALL_MEMBERS_MAX && RECEIPTS_PAGE_MAX >= PAGE_DEFAULT);
    assert!(REACTION_KEY_BYTES_MAX <= u8::MAX as usize);
    assert!(ID_AHEAD_MS_MAX < ID_AGE_MS_MAX);
    assert!(CONNECTION_IN_FLIGHT_MAX < OUTBOX_FRAMES_MAX);
    // A stream of gRPC whose client stands still is told why before it is reset.
    assert!(STALLED_MS_MAX < ANSWER_STALLED_MS_MAX);
    assert!(ANSWERS_HELD_BYTES_MAX >= PAGE_BYTES_MAX && UNREAD_BODY_BYTES_MAX > REQUEST_BYTES_MAX);
    assert!(PAGE_BYTES_MAX.is_multiple_of(PAGE_IN_FLIGHT_WEIGHT));
    assert!(ACCESS_STALE_MS_MAX + COMMAND_DEADLINE_MS < 30_000);
    assert!(LINK_FRAME_BYTES_MAX <= LINK_QUEUED_BYTES_MAX && LINK_FRAME_BYTES_MAX <= LINK_QUESTION_BYTES_MAX);
    assert!((LINK_LANES as u32) * LINK_LANE_UNREAD_BYTES_MAX <= LINK_UNREAD_BYTES_MAX);
    assert!(PAGE_BYTES_MAX * (CONNECTION_IN_FLIGHT_MAX / PAGE_IN_FLIGHT_WEIGHT) <= OUTBOX_BYTES_MAX);
};
