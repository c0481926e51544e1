//! What an operation is given. Every transport decodes to the same [`Command`].

// What rkyv derives of an enum's fields has no documentation.
#![allow(missing_docs)]

use std::{str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;
use xxhash_rust::xxh3::Xxh3;

use crate::{
    body::Body,
    decode::{self, object as args},
    error::{Code, Error},
    event::{ConversationKind, Encryption, HistoryAccess, Role},
    id::{CommandId, ConversationId, DeviceId, Malformed, Millis, Seq, UserId},
    inbox::{Cursor, Filter, Marking, MarkingArgs, Place},
    limit::{
        CREATE_MEMBERS_MAX, DATA_BYTES_MAX, ID_AGE_MS_MAX, ID_AHEAD_MS_MAX, INBOX_PAGE_MAX, KEY_BYTES_MAX,
        MEMBERS_PAGE_MAX, PAGE_DEFAULT, PAGE_MAX, REACTIONS_PAGE_MAX, REASON_BYTES_MAX, RECEIPTS_PAGE_MAX,
        RETENTION_SECS_MAX, RETENTION_SECS_MIN, TITLE_BYTES_MAX,
    },
    mention::{Mentioned, Mentions},
    operation::Op,
    presence::{Watch, WatchArgs},
    reaction::ReactionKey,
    receipt::{BatchArgs, Progress},
    time::Timestamp,
};

/// One request of a client to an entity, valid in itself.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
#[allow(missing_docs)] // The variants are the rows of the table of operations.
pub enum Command {
    ConversationCreate(Box<Create>),
    ConversationList { filter: Filter, below: Option<Place>, limit: usize },
    ConversationGet { conversation: ConversationId },
    ConversationUpdate { conversation: ConversationId, update: Box<Update> },
    ConversationJoin { conversation: ConversationId },
    ConversationLeave { conversation: ConversationId },
    ConversationDelete { conversation: ConversationId },
    MemberList { conversation: ConversationId, after: Option<UserId>, limit: usize },
    MemberAdd { conversation: ConversationId, user: UserId, role: Role },
    MemberRole { conversation: ConversationId, user: UserId, role: Role },
    MemberRemove { conversation: ConversationId, user: UserId },
    MessageSend { conversation: ConversationId, body: Body, mentions: Mentioned },
    MessageList { conversation: ConversationId, page: Page },
    MessageGet { conversation: ConversationId, seq: Seq },
    MessageEdit { conversation: ConversationId, seq: Seq, body: Body, mentions: Mentioned },
    MessageDelete { conversation: ConversationId, seq: Seq },
    MessageHistory { conversation: ConversationId, seq: Seq },
    ReactionAdd { conversation: ConversationId, seq: Seq, key: ReactionKey },
    ReactionRemove { conversation: ConversationId, seq: Seq, key: ReactionKey },
    ReactionList { conversation: ConversationId, seq: Seq, key: ReactionKey, after: Option<UserId>, limit: usize },
    EventList { conversation: ConversationId, after: Seq, limit: usize },
    ConversationOpen { conversation: ConversationId },
    ConversationClose { conversation: ConversationId },
    SessionList,
    SessionLogout { device: Option<DeviceId> },
    SessionLogoutAll,
    // Of the user as whom a server-side caller asks.
    AdminUserGet,
    AdminUserBan { until: Option<Millis>, reason: String },
    AdminUserUnban,
    AdminUserLogout { device: Option<DeviceId> },
    InboxSync { cursor: Option<Cursor>, limit: usize },
    InboxUpdate { conversation: ConversationId, marking: Marking },
    PresenceGet { watch: Watch },
    PresenceUpdate { invisible: bool },
    // Of a connection: its gateway answers them.
    PresenceWatch { watches: Arc<[Watch]> },
    PresenceAway { away: bool },
    TypingStart { conversation: ConversationId },
    TypingStop { conversation: ConversationId },
    // `private` where the caller says more than their preference does.
    ConversationRead { conversation: ConversationId, n: u64, private: Option<bool> },
    ConversationDelivered { conversation: ConversationId, n: u64 },
    ReceiptPut { progress: Vec<Progress>, private: Option<bool> },
    ReceiptList { conversation: ConversationId, seq: Seq, after: Option<UserId>, limit: usize },
    ReceiptPreference,
    ReceiptPrefer { private: bool },
}

/// A creation. The gateway has derived the id, so that a repetition meets the same entity.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Create {
    /// The new conversation.
    pub conversation: ConversationId,
    /// What it is.
    pub kind: ConversationKind,
    /// Fixed for ever.
    pub encryption: Encryption,
    /// The others; the caller is a member by itself.
    pub members: Vec<UserId>,
    /// Title, empty for none.
    pub title: String,
    /// The application's JSON object.
    pub data: Option<Body>,
    /// What newcomers may read.
    pub history: HistoryAccess,
    /// Whether members see how far the others have got.
    pub receipts: bool,
    /// Whether whoever wants to becomes a member.
    pub open: bool,
    /// How long messages are kept, in seconds; 0 for ever.
    pub retention_secs: u32,
}

/// A change of settings; what is `None` stays.
#[derive(Clone, Debug, Default, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Update {
    /// New title, empty for none.
    pub title: Option<String>,
    /// New application data; `{}` for none.
    pub data: Option<Body>,
    /// What newcomers may read from now on.
    pub history: Option<HistoryAccess>,
    /// Whether members see how far the others have got from now on.
    pub receipts: Option<bool>,
    /// Whether whoever wants to becomes a member, from now on.
    pub open: Option<bool>,
    /// How long messages are kept from now on, in seconds; 0 for ever.
    pub retention_secs: Option<u32>,
}

/// Which part of the history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Page {
    /// Where from.
    pub from: From,
    /// At most this many messages.
    pub limit: usize,
}

/// Where a page lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub enum From {
    /// The newest messages.
    Newest,
    /// Those below this seq, the nearest.
    Before(Seq),
    /// Those above this seq, the nearest.
    After(Seq),
    /// Those on both sides of this seq.
    Around(Seq),
}

/// A decoded request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decoded {
    /// What is asked.
    pub command: Command,
    /// The id that the client gave it.
    pub id: Option<CommandId>,
}

// === what clients write ===

#[derive(Deserialize)]
struct CreateArgs<'a> {
    kind: ConversationKind,
    with: Option<UserId>,
    #[serde(default)]
    members: Vec<UserId>,
    #[serde(default)]
    title: String,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
    history: Option<HistoryAccess>,
    #[serde(default)]
    encryption: Encryption,
    receipts: Option<bool>,
    #[serde(default)]
    open: bool,
    retention_secs: Option<u64>,
    idempotency_key: Option<String>,
}

#[derive(Deserialize)]
struct InboxArgs {
    cursor: Option<String>,
    limit: Option<usize>,
    #[serde(default)]
    archived: bool,
    #[serde(default)]
    unread: bool,
    muted: Option<bool>,
}

#[derive(Deserialize)]
struct SyncArgs {
    cursor: Option<String>,
    limit: Option<usize>,
}

#[derive(Deserialize)]
struct ConversationArgs {
    conversation: ConversationId,
}

#[derive(Deserialize)]
struct KeyedArgs {
    conversation: ConversationId,
    idempotency_key: Option<Uuid>,
}

#[derive(Deserialize)]
struct UpdateArgs<'a> {
    conversation: ConversationId,
    title: Option<String>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
    history: Option<HistoryAccess>,
    receipts: Option<bool>,
    open: Option<bool>,
    retention_secs: Option<u64>,
    idempotency_key: Option<Uuid>,
}

#[derive(Deserialize)]
struct MembersArgs {
    conversation: ConversationId,
    cursor: Option<UserId>,
    limit: Option<usize>,
}

#[derive(Deserialize)]
struct MemberArgs {
    conversation: ConversationId,
    user: UserId,
    role: Option<Role>,
    idempotency_key: Option<Uuid>,
}

#[derive(Deserialize)]
struct LeavingArgs {
    conversation: ConversationId,
    user: UserId,
    idempotency_key: Option<Uuid>,
}

#[derive(Deserialize)]
struct SendArgs<'a> {
    conversation: ConversationId,
    client_msg_id: Uuid,
    #[serde(borrow)]
    body: &'a RawValue,
    #[serde(default)]
    mentions: Mentions,
}

#[derive(Deserialize)]
struct PageArgs {
    conversation: ConversationId,
    before: Option<Seq>,
    after: Option<Seq>,
    around: Option<Seq>,
    limit: Option<usize>,
}

#[derive(Deserialize)]
struct MessageArgs {
    conversation: ConversationId,
    seq: Seq,
}

#[derive(Deserialize)]
struct EditArgs<'a> {
    conversation: ConversationId,
    seq: Seq,
    #[serde(borrow)]
    body: &'a RawValue,
    #[serde(default)]
    mentions: Mentions,
    idempotency_key: Option<Uuid>,
}

#[derive(Deserialize)]
struct DeleteArgs {
    conversation: ConversationId,
    seq: Seq,
    idempotency_key: Option<Uuid>,
}

#[derive(Deserialize)]
struct ReactionArgs {
    conversation: ConversationId,
    seq: Seq,
    key: ReactionKey,
    idempotency_key: Option<Uuid>,
}

#[derive(Deserialize)]
struct ReactionsArgs {
    conversation: ConversationId,
    seq: Seq,
    key: ReactionKey,
    cursor: Option<UserId>,
    limit: Option<usize>,
}

#[derive(Deserialize)]
struct ReadArgs {
    conversation: ConversationId,
    n: u64,
    private: Option<bool>,
}

#[derive(Deserialize)]
struct DeliveredArgs {
    conversation: ConversationId,
    n: u64,
}

#[derive(Deserialize)]
struct ReceiptsArgs {
    conversation: ConversationId,
    seq: Seq,
    cursor: Option<UserId>,
    limit: Option<usize>,
}

#[derive(Deserialize)]
struct PreferArgs {
    private: bool,
    idempotency_key: Option<Uuid>,
}

#[derive(Deserialize)]
struct EventsArgs {
    conversation: ConversationId,
    #[serde(default)]
    after: Seq,
    limit: Option<usize>,
}

#[derive(Deserialize)]
struct OpenArgs {
    conversation: ConversationId,
    // What the client holds; the answer's head tells it what to fetch.
    #[serde(default, rename = "from")]
    _from: Seq,
}

#[derive(Deserialize)]
struct NoArgs {}

#[derive(Deserialize)]
struct LogoutArgs {
    device: Option<DeviceId>,
    idempotency_key: Option<Uuid>,
}

#[derive(Deserialize)]
struct OnlyKeyArgs {
    idempotency_key: Option<Uuid>,
}

#[derive(Deserialize)]
struct OnlyUserArgs {
    // The gateway has made it the one as whom is asked; here and below.
    #[serde(rename = "user")]
    _user: UserId,
}

#[derive(Deserialize)]
struct UnbanArgs {
    #[serde(rename = "user")]
    _user: UserId,
    idempotency_key: Option<Uuid>,
}

#[derive(Deserialize)]
struct UserLogoutArgs {
    #[serde(rename = "user")]
    _user: UserId,
    device: Option<DeviceId>,
    idempotency_key: Option<Uuid>,
}

#[derive(Deserialize)]
struct BanArgs {
    #[serde(rename = "user")]
    _user: UserId,
    until: Option<Timestamp>,
    #[serde(default)]
    reason: String,
    idempotency_key: Option<Uuid>,
}

#[derive(Deserialize)]
struct PresenceArgs {
    user: UserId,
    conversation: Option<ConversationId>,
}

#[derive(Deserialize)]
struct VisibilityArgs {
    invisible: bool,
    idempotency_key: Option<Uuid>,
}

#[derive(Deserialize)]
struct WatchesArgs {
    users: Vec<WatchArgs>,
}

#[derive(Deserialize)]
struct AwayArgs {
    away: bool,
}

/// A message's body, or an edited one.
fn body(raw: &RawValue) -> Result<Body, Error> {
    Body::parse(raw.get()).map_err(worded)
}

/// What the decoder said about a part of the request, in our words.
fn worded(error: Error) -> Error {
    if error.code != Code::Invalid {
        return error;
    }
    let detail = decode::sentence(&error.detail);
    error.with_detail(detail)
}

fn text_within(field: &'static str, text: &str, bytes_max: usize) -> Result<(), Error> {
    if text.len() > bytes_max {
        return Err(Error::invalid(field, format!("{} bytes; at most {bytes_max} are accepted", text.len())));
    }
    if text.chars().any(char::is_control) {
        return Err(Error::invalid(field, "control characters are not accepted"));
    }
    Ok(())
}

fn data(raw: Option<&RawValue>) -> Result<Option<Body>, Error> {
    raw.map(|raw| {
        Body::parse_within(raw.get(), DATA_BYTES_MAX).map_err(|error| Error::invalid("data", worded(error).detail))
    })
    .transpose()
}

fn limit(asked: Option<usize>, max: usize) -> Result<usize, Error> {
    match asked {
        None => Ok(PAGE_DEFAULT.min(max)),
        Some(0) => Err(Error::invalid("limit", format!("expected 1 or more; more than {max} counts as {max}"))),
        Some(limit) => Ok(limit.min(max)),
    }
}

fn cursor<T: FromStr<Err = Malformed>>(text: Option<String>) -> Result<Option<T>, Error> {
    text.map(|text| text.parse().map_err(|Malformed(expected)| Error::invalid("cursor", expected))).transpose()
}

fn key(uuid: Option<Uuid>) -> Result<Option<CommandId>, Error> {
    match uuid.map(CommandId) {
        Some(id) if id.time().is_none() => {
            Err(Error::new(Code::BadId).with_detail("expected a UUIDv7").at("idempotency_key"))
        }
        id => Ok(id),
    }
}

/// Whether an id is of a time in which it can be recognised.
///
/// # Errors
/// `message.bad_id`, `message.id_expired`.
pub fn check_id_time(id: CommandId, now: Millis) -> Result<(), Error> {
    match id.time() {
        Some(time) if time > now + ID_AHEAD_MS_MAX => {
            Err(Error::new(Code::BadId).with_detail("the id is from the future; take the time from the server"))
        }
        Some(time) if time + ID_AGE_MS_MAX < now => Err(Code::IdExpired.into()),
        _ => Ok(()),
    }
}

/// How long messages are to be kept; 0 for ever.
fn retention(secs: Option<u64>) -> Result<Option<u32>, Error> {
    let Some(secs) = secs else { return Ok(None) };
    match u32::try_from(secs) {
        Ok(secs) if secs == 0 || (RETENTION_SECS_MIN..=RETENTION_SECS_MAX).contains(&secs) => Ok(Some(secs)),
        _ => {
            let detail = format!("{RETENTION_SECS_MIN} to {RETENTION_SECS_MAX} seconds, or 0 for ever");
            Err(Error::invalid("retention_secs", detail))
        }
    }
}

impl Create {
    fn decode(caller: &UserId, args: CreateArgs<'_>) -> Result<Self, Error> {
        if args.encryption != Encryption::None {
            return Err(Error::invalid("encryption", "only `none` is offered by this version"));
        }
        text_within("title", &args.title, TITLE_BYTES_MAX)?;
        let data = data(args.data)?;
        if args.open && args.kind != ConversationKind::Channel {
            return Err(Error::invalid("open", "only channels are open to whoever wants to join"));
        }
        let retention_secs = retention(args.retention_secs)?.unwrap_or(0);
        if retention_secs != 0 && args.kind == ConversationKind::Direct {
            let detail = "how long direct conversations are kept is the server's to say";
            return Err(Error::invalid("retention_secs", detail));
        }
        if let Some(key) = &args.idempotency_key {
            text_within("idempotency_key", key, KEY_BYTES_MAX)?;
        }
        let (conversation, members) = match args.kind {
            ConversationKind::Direct => {
                let Some(with) = args.with else {
                    return Err(Error::invalid("with", "a direct conversation is with somebody"));
                };
                if !args.members.is_empty() {
                    return Err(Error::invalid("members", "a direct conversation has no other members"));
                }
                if with == *caller {
                    return Err(Error::invalid("with", "a direct conversation is with somebody else"));
                }
                if !args.title.is_empty() || data.is_some() {
                    return Err(Error::invalid("title", "a direct conversation has no title or data"));
                }
                if args.receipts == Some(false) {
                    let detail = "a direct conversation has them; whoever minds reads privately";
                    return Err(Error::invalid("receipts", detail));
                }
                (ConversationId::direct(caller, &with, args.encryption), vec![with])
            }
            ConversationKind::Group | ConversationKind::Channel => {
                if args.with.is_some() {
                    return Err(Error::invalid("with", "the members stand in `members`"));
                }
                if args.kind == ConversationKind::Channel && args.receipts == Some(true) {
                    return Err(Error::invalid("receipts", "in a channel nobody sees how far the others have got"));
                }
                if args.members.len() > CREATE_MEMBERS_MAX {
                    let detail = format!("{} members; at most {CREATE_MEMBERS_MAX} at a creation", args.members.len());
                    return Err(Error::new(Code::MemberLimit).with_detail(detail).at("members"));
                }
                let mut members = args.members;
                members.sort_unstable();
                members.dedup();
                members.retain(|member| member != caller);
                let conversation = match &args.idempotency_key {
                    Some(key) => ConversationId::keyed(caller, key),
                    None => ConversationId(Uuid::now_v7()),
                };
                (conversation, members)
            }
        };
        // What was said in a channel is for whoever comes later, too.
        let history = args.history.unwrap_or(match args.kind {
            ConversationKind::Channel => HistoryAccess::All,
            ConversationKind::Direct | ConversationKind::Group => HistoryAccess::SinceJoin,
        });
        Ok(Self {
            conversation,
            kind: args.kind,
            encryption: args.encryption,
            members,
            title: args.title,
            data,
            history,
            receipts: args.receipts.unwrap_or(true),
            open: args.open,
            retention_secs,
        })
    }
}

impl Command {
    /// Decodes what `caller` wrote. Names of unknown fields are added to `ignored`.
    ///
    /// # Errors
    /// `request.malformed`, `request.invalid` with the field, `message.too_large`, `message.bad_id`, `member.limit`.
    pub fn decode(op: Op, caller: &UserId, json: &str, ignored: &mut Vec<String>) -> Result<Decoded, Error> {
        let mut id = None;
        let command = match op {
            Op::MessageSend => {
                let args: SendArgs<'_> = args(json, ignored)?;
                let given = CommandId(args.client_msg_id);
                if given.time().is_none() {
                    return Err(Error::new(Code::BadId).with_detail("expected a UUIDv7").at("client_msg_id"));
                }
                id = Some(given);
                let mentions = args.mentions.checked()?;
                Self::MessageSend { conversation: args.conversation, body: body(args.body)?, mentions }
            }
            Op::ConversationCreate => Self::ConversationCreate(Box::new(Create::decode(caller, args(json, ignored)?)?)),
            Op::ConversationList => {
                let args: InboxArgs = args(json, ignored)?;
                let filter = Filter { archived: args.archived, unread: args.unread, muted: args.muted };
                let (below, limit) = (cursor(args.cursor)?, limit(args.limit, INBOX_PAGE_MAX)?);
                Self::ConversationList { filter, below, limit }
            }
            Op::ConversationGet => {
                let args: ConversationArgs = args(json, ignored)?;
                Self::ConversationGet { conversation: args.conversation }
            }
            Op::ConversationUpdate => {
                let args: UpdateArgs<'_> = args(json, ignored)?;
                id = key(args.idempotency_key)?;
                if let Some(title) = &args.title {
                    text_within("title", title, TITLE_BYTES_MAX)?;
                }
                let retention_secs = retention(args.retention_secs)?;
                let UpdateArgs { history, receipts, open, .. } = args;
                let data = data(args.data)?;
                let update = Update { title: args.title, data, history, receipts, open, retention_secs };
                if update == Update::default() {
                    let detail =
                        "nothing to change: give `title`, `data`, `history`, `receipts`, `open` or `retention_secs`";
                    return Err(Error::invalid("title", detail));
                }
                Self::ConversationUpdate { conversation: args.conversation, update: Box::new(update) }
            }
            Op::ConversationJoin => {
                let args: KeyedArgs = args(json, ignored)?;
                id = key(args.idempotency_key)?;
                Self::ConversationJoin { conversation: args.conversation }
            }
            Op::ConversationLeave => {
                let args: KeyedArgs = args(json, ignored)?;
                id = key(args.idempotency_key)?;
                Self::ConversationLeave { conversation: args.conversation }
            }
            Op::ConversationDelete => {
                let args: KeyedArgs = args(json, ignored)?;
                id = key(args.idempotency_key)?;
                Self::ConversationDelete { conversation: args.conversation }
            }
            Op::MemberList => {
                let args: MembersArgs = args(json, ignored)?;
                Self::MemberList {
                    conversation: args.conversation,
                    after: args.cursor,
                    limit: limit(args.limit, MEMBERS_PAGE_MAX)?,
                }
            }
            Op::MemberAdd => {
                let args: MemberArgs = args(json, ignored)?;
                id = key(args.idempotency_key)?;
                Self::MemberAdd {
                    conversation: args.conversation,
                    user: args.user,
                    role: args.role.unwrap_or_default(),
                }
            }
            Op::MemberRole => {
                let args: MemberArgs = args(json, ignored)?;
                id = key(args.idempotency_key)?;
                let Some(role) = args.role else { return Err(Error::invalid("role", "the field `role` is missing")) };
                Self::MemberRole { conversation: args.conversation, user: args.user, role }
            }
            Op::MemberRemove => {
                let args: LeavingArgs = args(json, ignored)?;
                id = key(args.idempotency_key)?;
                Self::MemberRemove { conversation: args.conversation, user: args.user }
            }
            Op::MessageList => {
                let args: PageArgs = args(json, ignored)?;
                let from = match (args.before, args.after, args.around) {
                    (None, None, None) => From::Newest,
                    (Some(seq), None, None) => From::Before(seq),
                    (None, Some(seq), None) => From::After(seq),
                    (None, None, Some(seq)) => From::Around(seq),
                    _ => return Err(Error::invalid("before", "give one of `before`, `after` and `around`")),
                };
                Self::MessageList {
                    conversation: args.conversation,
                    page: Page { from, limit: limit(args.limit, PAGE_MAX)? },
                }
            }
            Op::MessageGet => {
                let args: MessageArgs = args(json, ignored)?;
                Self::MessageGet { conversation: args.conversation, seq: args.seq }
            }
            Op::MessageEdit => {
                let args: EditArgs<'_> = args(json, ignored)?;
                id = key(args.idempotency_key)?;
                let (body, mentions) = (body(args.body)?, args.mentions.checked()?);
                Self::MessageEdit { conversation: args.conversation, seq: args.seq, body, mentions }
            }
            Op::MessageDelete => {
                let args: DeleteArgs = args(json, ignored)?;
                id = key(args.idempotency_key)?;
                Self::MessageDelete { conversation: args.conversation, seq: args.seq }
            }
            Op::MessageHistory => {
                let args: MessageArgs = args(json, ignored)?;
                Self::MessageHistory { conversation: args.conversation, seq: args.seq }
            }
            Op::ReactionAdd => {
                let args: ReactionArgs = args(json, ignored)?;
                id = key(args.idempotency_key)?;
                Self::ReactionAdd { conversation: args.conversation, seq: args.seq, key: args.key }
            }
            Op::ReactionRemove => {
                let args: ReactionArgs = args(json, ignored)?;
                id = key(args.idempotency_key)?;
                Self::ReactionRemove { conversation: args.conversation, seq: args.seq, key: args.key }
            }
            Op::ReactionList => {
                let args: ReactionsArgs = args(json, ignored)?;
                Self::ReactionList {
                    conversation: args.conversation,
                    seq: args.seq,
                    key: args.key,
                    after: args.cursor,
                    limit: limit(args.limit, REACTIONS_PAGE_MAX)?,
                }
            }
            Op::EventList => {
                let args: EventsArgs = args(json, ignored)?;
                Self::EventList {
                    conversation: args.conversation,
                    after: args.after,
                    limit: limit(args.limit, PAGE_MAX)?,
                }
            }
            Op::ConversationOpen => {
                let args: OpenArgs = args(json, ignored)?;
                Self::ConversationOpen { conversation: args.conversation }
            }
            Op::ConversationClose => {
                let args: ConversationArgs = args(json, ignored)?;
                Self::ConversationClose { conversation: args.conversation }
            }
            Op::SessionList => {
                let NoArgs {} = args(json, ignored)?;
                Self::SessionList
            }
            Op::SessionLogout => {
                let args: LogoutArgs = args(json, ignored)?;
                id = key(args.idempotency_key)?;
                Self::SessionLogout { device: args.device }
            }
            Op::SessionLogoutAll => {
                let args: OnlyKeyArgs = args(json, ignored)?;
                id = key(args.idempotency_key)?;
                Self::SessionLogoutAll
            }
            Op::AdminUserGet => {
                let _: OnlyUserArgs = args(json, ignored)?;
                Self::AdminUserGet
            }
            Op::AdminUserBan => {
                let args: BanArgs = args(json, ignored)?;
                id = key(args.idempotency_key)?;
                text_within("reason", &args.reason, REASON_BYTES_MAX)?;
                Self::AdminUserBan { until: args.until.map(|until| until.0), reason: args.reason }
            }
            Op::AdminUserUnban => {
                let args: UnbanArgs = args(json, ignored)?;
                id = key(args.idempotency_key)?;
                Self::AdminUserUnban
            }
            Op::AdminUserLogout => {
                let args: UserLogoutArgs = args(json, ignored)?;
                id = key(args.idempotency_key)?;
                Self::AdminUserLogout { device: args.device }
            }
            Op::InboxSync => {
                let args: SyncArgs = args(json, ignored)?;
                Self::InboxSync { cursor: cursor(args.cursor)?, limit: limit(args.limit, INBOX_PAGE_MAX)? }
            }
            Op::InboxUpdate => {
                let args: MarkingArgs = args(json, ignored)?;
                id = key(args.idempotency_key)?;
                Self::InboxUpdate { conversation: args.conversation, marking: args.marking()? }
            }
            Op::PresenceGet => {
                let args: PresenceArgs = args(json, ignored)?;
                Self::PresenceGet { watch: Watch::new(caller, args.user, args.conversation) }
            }
            Op::PresenceUpdate => {
                let args: VisibilityArgs = args(json, ignored)?;
                id = key(args.idempotency_key)?;
                Self::PresenceUpdate { invisible: args.invisible }
            }
            Op::PresenceWatch => {
                let args: WatchesArgs = args(json, ignored)?;
                Self::PresenceWatch { watches: Watch::decode(caller, args.users)? }
            }
            Op::PresenceAway => {
                let args: AwayArgs = args(json, ignored)?;
                Self::PresenceAway { away: args.away }
            }
            Op::TypingStart => {
                let args: ConversationArgs = args(json, ignored)?;
                Self::TypingStart { conversation: args.conversation }
            }
            Op::TypingStop => {
                let args: ConversationArgs = args(json, ignored)?;
                Self::TypingStop { conversation: args.conversation }
            }
            Op::ConversationRead => {
                let args: ReadArgs = args(json, ignored)?;
                Self::ConversationRead { conversation: args.conversation, n: args.n, private: args.private }
            }
            Op::ConversationDelivered => {
                let args: DeliveredArgs = args(json, ignored)?;
                Self::ConversationDelivered { conversation: args.conversation, n: args.n }
            }
            Op::ReceiptPut => {
                let args: BatchArgs = args(json, ignored)?;
                Self::ReceiptPut { progress: args.progress()?, private: args.private }
            }
            Op::ReceiptList => {
                let args: ReceiptsArgs = args(json, ignored)?;
                Self::ReceiptList {
                    conversation: args.conversation,
                    seq: args.seq,
                    after: args.cursor,
                    limit: limit(args.limit, RECEIPTS_PAGE_MAX)?,
                }
            }
            Op::ReceiptPreference => {
                let NoArgs {} = args(json, ignored)?;
                Self::ReceiptPreference
            }
            Op::ReceiptPrefer => {
                let args: PreferArgs = args(json, ignored)?;
                id = key(args.idempotency_key)?;
                Self::ReceiptPrefer { private: args.private }
            }
        };
        Ok(Decoded { command, id })
    }

    /// Its row in the table of operations.
    #[must_use]
    pub const fn op(&self) -> Op {
        match self {
            Self::ConversationCreate(_) => Op::ConversationCreate,
            Self::ConversationList { .. } => Op::ConversationList,
            Self::ConversationGet { .. } => Op::ConversationGet,
            Self::ConversationUpdate { .. } => Op::ConversationUpdate,
            Self::ConversationJoin { .. } => Op::ConversationJoin,
            Self::ConversationLeave { .. } => Op::ConversationLeave,
            Self::ConversationDelete { .. } => Op::ConversationDelete,
            Self::MemberList { .. } => Op::MemberList,
            Self::MemberAdd { .. } => Op::MemberAdd,
            Self::MemberRole { .. } => Op::MemberRole,
            Self::MemberRemove { .. } => Op::MemberRemove,
            Self::MessageSend { .. } => Op::MessageSend,
            Self::MessageList { .. } => Op::MessageList,
            Self::MessageGet { .. } => Op::MessageGet,
            Self::MessageEdit { .. } => Op::MessageEdit,
            Self::MessageDelete { .. } => Op::MessageDelete,
            Self::MessageHistory { .. } => Op::MessageHistory,
            Self::ReactionAdd { .. } => Op::ReactionAdd,
            Self::ReactionRemove { .. } => Op::ReactionRemove,
            Self::ReactionList { .. } => Op::ReactionList,
            Self::EventList { .. } => Op::EventList,
            Self::ConversationOpen { .. } => Op::ConversationOpen,
            Self::ConversationClose { .. } => Op::ConversationClose,
            Self::SessionList => Op::SessionList,
            Self::SessionLogout { .. } => Op::SessionLogout,
            Self::SessionLogoutAll => Op::SessionLogoutAll,
            Self::AdminUserGet => Op::AdminUserGet,
            Self::AdminUserBan { .. } => Op::AdminUserBan,
            Self::AdminUserUnban => Op::AdminUserUnban,
            Self::AdminUserLogout { .. } => Op::AdminUserLogout,
            Self::InboxSync { .. } => Op::InboxSync,
            Self::InboxUpdate { .. } => Op::InboxUpdate,
            Self::PresenceGet { .. } => Op::PresenceGet,
            Self::PresenceUpdate { .. } => Op::PresenceUpdate,
            Self::PresenceWatch { .. } => Op::PresenceWatch,
            Self::PresenceAway { .. } => Op::PresenceAway,
            Self::TypingStart { .. } => Op::TypingStart,
            Self::TypingStop { .. } => Op::TypingStop,
            Self::ConversationRead { .. } => Op::ConversationRead,
            Self::ConversationDelivered { .. } => Op::ConversationDelivered,
            Self::ReceiptPut { .. } => Op::ReceiptPut,
            Self::ReceiptList { .. } => Op::ReceiptList,
            Self::ReceiptPreference => Op::ReceiptPreference,
            Self::ReceiptPrefer { .. } => Op::ReceiptPrefer,
        }
    }

    /// The conversation that is asked; `None` for what the user entity answers.
    #[must_use]
    pub const fn conversation(&self) -> Option<ConversationId> {
        match self {
            Self::ConversationCreate(create) => Some(create.conversation),
            // What a user has set for a conversation is theirs, not the conversation's.
            Self::ConversationList { .. }
            | Self::InboxSync { .. }
            | Self::InboxUpdate { .. }
            | Self::PresenceGet { .. }
            | Self::PresenceUpdate { .. }
            | Self::PresenceWatch { .. }
            | Self::PresenceAway { .. }
            // How far somebody has got is said to them first: their preference counts, and their other devices hear of it.
            | Self::ConversationRead { .. }
            | Self::ConversationDelivered { .. }
            | Self::ReceiptPut { .. }
            | Self::ReceiptPreference
            | Self::ReceiptPrefer { .. }
            | Self::SessionList
            | Self::SessionLogout { .. }
            | Self::SessionLogoutAll
            | Self::AdminUserGet
            | Self::AdminUserBan { .. }
            | Self::AdminUserUnban
            | Self::AdminUserLogout { .. } => None,
            Self::ConversationGet { conversation }
            | Self::ConversationUpdate { conversation, .. }
            | Self::ConversationJoin { conversation }
            | Self::ConversationLeave { conversation }
            | Self::ConversationDelete { conversation }
            | Self::MemberList { conversation, .. }
            | Self::MemberAdd { conversation, .. }
            | Self::MemberRole { conversation, .. }
            | Self::MemberRemove { conversation, .. }
            | Self::MessageSend { conversation, .. }
            | Self::MessageList { conversation, .. }
            | Self::MessageGet { conversation, .. }
            | Self::MessageEdit { conversation, .. }
            | Self::MessageDelete { conversation, .. }
            | Self::MessageHistory { conversation, .. }
            | Self::ReactionAdd { conversation, .. }
            | Self::ReactionRemove { conversation, .. }
            | Self::ReactionList { conversation, .. }
            | Self::ReceiptList { conversation, .. }
            | Self::EventList { conversation, .. }
            | Self::ConversationOpen { conversation }
            | Self::ConversationClose { conversation }
            | Self::TypingStart { conversation }
            | Self::TypingStop { conversation } => Some(*conversation),
        }
    }

    /// Whether it is about log-outs, bans, or where a user is connected.
    #[must_use]
    pub const fn is_about_access(&self) -> bool {
        matches!(
            self,
            Self::SessionList
                | Self::SessionLogout { .. }
                | Self::SessionLogoutAll
                | Self::AdminUserGet
                | Self::AdminUserBan { .. }
                | Self::AdminUserUnban
                | Self::AdminUserLogout { .. }
        )
    }

    /// Whether it is about who is seen.
    #[must_use]
    pub const fn is_about_presence(&self) -> bool {
        matches!(
            self,
            Self::PresenceGet { .. }
                | Self::PresenceUpdate { .. }
                | Self::PresenceWatch { .. }
                | Self::PresenceAway { .. }
        )
    }

    /// Whether it is about how far the caller has got.
    #[must_use]
    pub const fn is_about_receipts(&self) -> bool {
        matches!(
            self,
            Self::ConversationRead { .. }
                | Self::ConversationDelivered { .. }
                | Self::ReceiptPut { .. }
                | Self::ReceiptPreference
                | Self::ReceiptPrefer { .. }
        )
    }

    /// Whether it changes something that may not be changed twice: then it has an id.
    #[must_use]
    pub fn is_mutation(&self) -> bool {
        use crate::operation::Identity;
        !matches!(
            self.op().row().identity,
            Identity::ReadOnly | Identity::Connection | Identity::Ephemeral | Identity::Watermark
        )
    }

    /// A hash of what is asked, so that another request under the same id is recognised as a conflict.
    #[must_use]
    pub fn hash(&self) -> u64 {
        let mut hash = Xxh3::new();
        // The hash is stored with the event: it is made of names, which stay, and not of places in a table.
        hash.update(self.op().name().as_bytes());
        let mut text = |text: &str| {
            hash.update(&(text.len() as u32).to_le_bytes());
            hash.update(text.as_bytes());
        };
        match self {
            Self::ConversationCreate(create) => {
                text(create.kind.name());
                text(create.encryption.name());
                text(create.history.name());
                text(&create.title);
                for member in &create.members {
                    text(member.as_str());
                }
                hash.update(create.data.as_ref().map_or(&[], |data| data.bytes()));
                // Creations of before there were receipts keep their hashes.
                if !create.receipts {
                    hash.update(b"\0receipts off");
                }
                if create.open {
                    hash.update(b"\0open");
                }
                if create.retention_secs != 0 {
                    hash.update(b"\0retention");
                    hash.update(&create.retention_secs.to_le_bytes());
                }
            }
            Self::ConversationUpdate { update, .. } => {
                for part in [update.title.as_deref(), update.history.map(HistoryAccess::name)] {
                    text(part.unwrap_or("\0"));
                }
                hash.update(update.data.as_ref().map_or(b"\0", |data| data.bytes()));
                if let Some(receipts) = update.receipts {
                    hash.update(if receipts { b"\0receipts on" } else { b"\0receipts off" });
                }
                if let Some(open) = update.open {
                    hash.update(if open { b"\0open" } else { b"\0not open" });
                }
                if let Some(secs) = update.retention_secs {
                    hash.update(b"\0retention");
                    hash.update(&secs.to_le_bytes());
                }
            }
            Self::MemberAdd { user, role, .. } | Self::MemberRole { user, role, .. } => {
                text(user.as_str());
                text(role.name());
            }
            Self::MemberRemove { user, .. } => text(user.as_str()),
            Self::MessageSend { body, mentions, .. } => {
                hash.update(body.bytes());
                hash_mentions(&mut hash, mentions);
            }
            Self::MessageEdit { seq, body, mentions, .. } => {
                hash.update(&seq.to_le_bytes());
                hash.update(body.bytes());
                hash_mentions(&mut hash, mentions);
            }
            Self::MessageDelete { seq, .. } => hash.update(&seq.to_le_bytes()),
            Self::ReactionAdd { seq, key, .. } | Self::ReactionRemove { seq, key, .. } => {
                text(key.as_str());
                hash.update(&seq.to_le_bytes());
            }
            Self::SessionLogout { device } | Self::AdminUserLogout { device } => {
                text(device.as_ref().map_or("", DeviceId::as_str));
            }
            Self::ReceiptPrefer { private } => hash.update(&[u8::from(*private)]),
            Self::AdminUserBan { until, reason } => {
                text(reason);
                hash.update(&until.unwrap_or(0).to_le_bytes());
            }
            Self::InboxUpdate { conversation, marking } => {
                hash.update(conversation.0.as_bytes());
                for flag in [marking.pinned, marking.archived, marking.marked_unread] {
                    hash.update(&[flag.map_or(2, u8::from)]);
                }
                hash.update(&[u8::from(marking.muted_until.is_some())]);
                hash.update(&marking.muted_until.unwrap_or(0).to_le_bytes());
            }
            Self::PresenceUpdate { invisible } => hash.update(&[u8::from(*invisible)]),
            _ => {}
        }
        hash.digest()
    }
}

/// A message without mentions has the hash that it had before there were any.
fn hash_mentions(hash: &mut Xxh3, mentioned: &Mentioned) {
    let Some(mentions) = mentioned else { return };
    // No body ends with these bytes.
    hash.update(if mentions.all { b"\0all" } else { b"\0one" });
    for user in &mentions.users {
        hash.update(&(user.as_str().len() as u32).to_le_bytes());
        hash.update(user.as_str().as_bytes());
    }
}

/// A newer token for a connection.
#[derive(Debug, Deserialize)]
pub struct Refresh {
    /// The JWT.
    pub token: String,
}

impl Refresh {
    /// Decodes the arguments of `auth.refresh`.
    ///
    /// # Errors
    /// `request.malformed`, or `request.invalid` with the field.
    pub fn decode(json: &str, ignored: &mut Vec<String>) -> Result<Self, Error> {
        args(json, ignored)
    }
}

/// The first frame of a connection.
#[derive(Debug, Deserialize, Serialize)]
pub struct Connect {
    /// The JWT.
    pub token: String,
    /// Which of the user's devices; the token's own claim, if there is one, wins.
    pub device: Option<crate::id::DeviceId>,
    /// What the client holds: conversation → (generation, seq).
    #[serde(default)]
    pub positions: std::collections::BTreeMap<ConversationId, (String, Seq)>,
    /// Up to where it knows the inbox. A text that is no cursor of ours counts as one that is of no use.
    pub cursor: Option<String>,
}

impl Connect {
    /// Decodes a `connect` frame's arguments.
    ///
    /// # Errors
    /// `request.malformed`, or `request.invalid` with the field.
    pub fn decode(json: &str, ignored: &mut Vec<String>) -> Result<Self, Error> {
        let connect: Self = args(json, ignored)?;
        let max = crate::limit::POSITIONS_MAX;
        if connect.positions.len() > max {
            return Err(Error::invalid(
                "positions",
                format!("{} positions; at most {max} at once", connect.positions.len()),
            ));
        }
        Ok(connect)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller() -> UserId {
        UserId::new("ada").unwrap()
    }

    fn decode(op: Op, json: &str) -> Result<Decoded, Error> {
        Command::decode(op, &caller(), json, &mut Vec::new())
    }

    const CONVERSATION: &str = "01890a5d-ac96-774b-bcce-b302099a8057";

    #[test]
    fn a_send_is_decoded_with_its_id_and_body() {
        let json =
            format!(r#"{{"conversation":"{CONVERSATION}","client_msg_id":"{CONVERSATION}","body":{{"text":"hi"}}}}"#);
        let decoded = decode(Op::MessageSend, &json).unwrap();
        assert_eq!(decoded.id, Some(CommandId(CONVERSATION.parse().unwrap())));
        let Command::MessageSend { body, .. } = decoded.command else { panic!("{:?}", decoded.command) };
        assert_eq!(body.bytes(), r#"{"text":"hi"}"#.as_bytes());
    }

    #[test]
    fn how_long_messages_are_kept_is_bounded() {
        let update = |secs: &str| {
            let json = format!(r#"{{"conversation":"{CONVERSATION}","retention_secs":{secs}}}"#);
            match decode(Op::ConversationUpdate, &json).map(|decoded| decoded.command) {
                Ok(Command::ConversationUpdate { update, .. }) => Ok(update.retention_secs),
                Ok(other) => panic!("{other:?}"),
                Err(error) => Err(error.field),
            }
        };
        let refused = Err(Some("retention_secs".into()));
        assert_eq!(update("0"), Ok(Some(0)));
        assert_eq!(update("60"), Ok(Some(RETENTION_SECS_MIN)));
        assert_eq!(update(&RETENTION_SECS_MAX.to_string()), Ok(Some(RETENTION_SECS_MAX)));
        for secs in ["59", "3162240001", "99999999999"] {
            assert_eq!(update(secs), refused, "{secs}");
        }
        let create = |kind: &str| {
            let json = format!(
                r#"{{"kind":"{kind}","retention_secs":3600{}}}"#,
                if kind == "direct" { r#","with":"bob""# } else { "" }
            );
            decode(Op::ConversationCreate, &json).map(|decoded| decoded.command.hash()).map_err(|error| error.field)
        };
        assert!(create("group").is_ok() && create("channel").is_ok());
        assert_eq!(create("direct"), Err(Some("retention_secs".into())));
        let another = |secs| Create { retention_secs: secs, ..group() };
        let hash = |secs| Command::ConversationCreate(Box::new(another(secs))).hash();
        assert!(hash(0) != hash(60) && hash(60) != hash(61));
    }

    fn group() -> Create {
        let json = r#"{"kind":"group","idempotency_key":"one"}"#;
        match decode(Op::ConversationCreate, json).unwrap().command {
            Command::ConversationCreate(create) => *create,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn unknown_fields_are_named() {
        let mut ignored = Vec::new();
        let json = format!(r#"{{"conversation":"{CONVERSATION}","bdoy":{{}},"after":4}}"#);
        Command::decode(Op::EventList, &caller(), &json, &mut ignored).unwrap();
        assert_eq!(ignored, ["bdoy"]);
    }

    #[test]
    fn the_offending_field_is_named() {
        for (op, json, field) in [
            (Op::MessageSend, r#"{"conversation":"x","client_msg_id":"y","body":{}}"#.to_owned(), "conversation"),
            (
                Op::MessageSend,
                format!(r#"{{"conversation":"{CONVERSATION}","client_msg_id":7,"body":{{}}}}"#),
                "client_msg_id",
            ),
            (
                Op::MessageSend,
                format!(r#"{{"conversation":"{CONVERSATION}","client_msg_id":"{CONVERSATION}"}}"#),
                "body",
            ),
            (
                Op::MessageSend,
                format!(r#"{{"conversation":"{CONVERSATION}","client_msg_id":"{CONVERSATION}","body":[]}}"#),
                "body",
            ),
            (Op::MessageGet, format!(r#"{{"conversation":"{CONVERSATION}","seq":-1}}"#), "seq"),
            (Op::ReactionAdd, format!(r#"{{"conversation":"{CONVERSATION}","seq":1,"key":""}}"#), "key"),
            (Op::ReactionList, format!(r#"{{"conversation":"{CONVERSATION}","seq":1}}"#), "key"),
            (Op::MessageList, format!(r#"{{"conversation":"{CONVERSATION}","limit":0}}"#), "limit"),
            (Op::MessageList, format!(r#"{{"conversation":"{CONVERSATION}","before":1,"after":2}}"#), "before"),
            (Op::ConversationCreate, r#"{"kind":"direct","with":"ada"}"#.to_owned(), "with"),
            (Op::ConversationCreate, r#"{"kind":"direct"}"#.to_owned(), "with"),
            (Op::ConversationCreate, r#"{"kind":"nothing"}"#.to_owned(), "kind"),
            (Op::ConversationCreate, r#"{"kind":"group","title":"a\u0000b"}"#.to_owned(), "title"),
        ] {
            let error = decode(op, &json).unwrap_err();
            assert_eq!(error.field.as_deref(), Some(field), "{json}: {error}");
        }
    }

    #[test]
    fn a_body_is_refused_in_our_words() {
        for (body, said) in [
            ("[]", "expected a JSON object"),
            ("\"no\"", "expected a JSON object"),
            (r#"{"text":7}"#, "expected `text` to be a string"),
            (r#"{"text":"\ud800"}"#, "the JSON is not well formed: "),
        ] {
            let json = format!(r#"{{"conversation":"{CONVERSATION}","client_msg_id":"{CONVERSATION}","body":{body}}}"#);
            let error = decode(Op::MessageSend, &json).unwrap_err();
            assert!(error.detail.starts_with(said) && !error.detail.contains("column"), "{body}: {error}");
            assert_eq!(error.field.as_deref(), Some("body"));
        }
    }

    #[test]
    fn a_limit_of_nothing_is_refused_and_too_large_a_one_is_cut() {
        let list = |limit: &str| decode(Op::ConversationList, &format!(r#"{{"limit":{limit}}}"#));
        let error = list("0").unwrap_err();
        let max = INBOX_PAGE_MAX;
        assert_eq!(error.detail, format!("expected 1 or more; more than {max} counts as {max}"));
        let Command::ConversationList { limit, .. } = list("1000000").unwrap().command else { panic!() };
        assert_eq!(limit, max);
    }

    #[test]
    fn who_is_looked_at_by_which_right() {
        let get = |json: &str| match decode(Op::PresenceGet, json).unwrap().command {
            Command::PresenceGet { watch } => watch.conversation,
            other => panic!("{other:?}"),
        };
        let bob = UserId::new("bob").unwrap();
        assert_eq!(get(r#"{"user":"bob"}"#), ConversationId::direct(&caller(), &bob, Encryption::None));
        let named = format!(r#"{{"user":"bob","conversation":"{CONVERSATION}"}}"#);
        assert_eq!(get(&named), CONVERSATION.parse().unwrap());
        for json in [r"{}", r#"{"users":"bob"}"#, r#"{"users":[{"user":""}]}"#, r#"{"users":[{"user":"ada"}]}"#] {
            let error = decode(Op::PresenceWatch, json).unwrap_err();
            assert_eq!((error.code, error.field.as_deref()), (Code::Invalid, Some("users")), "{json}");
        }
    }

    #[test]
    fn what_is_no_object_is_malformed() {
        for json in ["", "[]", "7", "{", "{\"conversation\"", "nonsense", "{}{}"] {
            let code = decode(Op::ConversationGet, json).unwrap_err().code;
            assert!(matches!(code, Code::Malformed | Code::Invalid), "{json}: {code:?}");
        }
        assert_eq!(decode(Op::ConversationGet, "{").unwrap_err().code, Code::Malformed);
        assert_eq!(decode(Op::ConversationGet, "[]").unwrap_err().code, Code::Malformed);
    }

    #[test]
    fn only_v7_ids_are_ids() {
        let v4 = Uuid::new_v4();
        let send = format!(r#"{{"conversation":"{CONVERSATION}","client_msg_id":"{v4}","body":{{}}}}"#);
        assert_eq!(decode(Op::MessageSend, &send).unwrap_err().code, Code::BadId);
        let leave = format!(r#"{{"conversation":"{CONVERSATION}","idempotency_key":"{v4}"}}"#);
        assert_eq!(decode(Op::ConversationLeave, &leave).unwrap_err().code, Code::BadId);
    }

    #[test]
    fn a_group_created_twice_under_one_key_is_one_group() {
        let json = r#"{"kind":"group","title":"t","members":["bob","ada","bob"],"idempotency_key":"k"}"#;
        let (one, two) = (decode(Op::ConversationCreate, json).unwrap(), decode(Op::ConversationCreate, json).unwrap());
        assert_eq!(one.command.conversation(), two.command.conversation());
        let Command::ConversationCreate(create) = one.command else { panic!() };
        assert_eq!(create.members, [UserId::new("bob").unwrap()]);
        let other = decode(Op::ConversationCreate, &json.replace("\"k\"", "\"l\"")).unwrap();
        assert_ne!(other.command.conversation(), two.command.conversation());
    }

    #[test]
    fn another_body_is_another_hash() {
        let send = |text: &str| Command::MessageSend {
            conversation: CONVERSATION.parse().unwrap(),
            body: Body::parse(&format!(r#"{{"text":"{text}"}}"#)).unwrap(),
            mentions: None,
        };
        assert_eq!(send("a").hash(), send("a").hash());
        assert_ne!(send("a").hash(), send("b").hash());
        // Stored with events of before there were mentions.
        assert_eq!(send("a").hash(), 9_171_524_286_334_796_172);
        let Command::MessageSend { conversation, body, .. } = send("a") else { panic!() };
        let to = |json: &str| {
            let mentions = serde_json::from_str::<Mentions>(json).unwrap().checked().unwrap();
            Command::MessageSend { conversation, body: body.clone(), mentions }.hash()
        };
        let hashes =
            [to("{}"), to(r#"{"all":true}"#), to(r#"{"users":["bob"]}"#), to(r#"{"users":["bob"],"all":true}"#)];
        assert_eq!(hashes.iter().collect::<std::collections::HashSet<_>>().len(), 4);
    }

    /// A minimal request for every operation; the row, the conversation and the kind of change follow from it.
    #[test]
    fn every_operation_is_decoded_from_its_fields() {
        use crate::operation::{Identity, OPERATIONS, Owner};
        let mut hashes = std::collections::HashMap::new();
        for row in OPERATIONS {
            let json = match row.op {
                Op::ConversationCreate => r#"{"kind":"group","members":["bob"],"data":{"a":1}}"#.to_owned(),
                Op::ConversationList => {
                    r#"{"cursor":"1.ff.00000000000000000000000000000007","limit":3,"archived":true,"muted":false}"#
                        .to_owned()
                }
                Op::InboxSync => r#"{"cursor":"9.5.ff","limit":3}"#.to_owned(),
                Op::ReceiptPut => format!(r#"{{"conversations":{{"{CONVERSATION}":{{"read":4}}}}}}"#),
                _ => format!(
                    r#"{{"conversation":"{CONVERSATION}","client_msg_id":"{CONVERSATION}","seq":4,"body":{{}},"user":"bob","role":"admin","title":"t","device":"d","pinned":true,"key":"+1","invisible":true,"away":true,"users":[{{"user":"bob"}}],"n":4,"private":true}}"#
                ),
            };
            let decoded = decode(row.op, &json).unwrap_or_else(|error| panic!("{}: {error}", row.name));
            assert_eq!(decoded.command.op(), row.op);
            assert_eq!(decoded.command.conversation().is_some(), row.owner == Owner::Conversation, "{}", row.name);
            let reads = matches!(
                row.identity,
                Identity::ReadOnly | Identity::Connection | Identity::Ephemeral | Identity::Watermark
            );
            assert_eq!(decoded.command.is_mutation(), !reads, "{}", row.name);
            if !reads {
                assert_eq!(hashes.insert(decoded.command.hash(), row.name), None, "two commands with one hash");
                assert_eq!(decoded.command.hash(), decode(row.op, &json).unwrap().command.hash(), "{}", row.name);
            }
        }
    }

    #[test]
    fn positions_are_bounded() {
        let positions = |count: usize| {
            let one = |n: usize| format!(r#""{}":["ff",{n}]"#, ConversationId(Uuid::from_u128(n as u128)));
            format!(
                r#"{{"token":"t","device":"d","positions":{{{}}}}}"#,
                (0..count).map(one).collect::<Vec<_>>().join(",")
            )
        };
        assert_eq!(Connect::decode(&positions(200), &mut Vec::new()).unwrap().positions.len(), 200);
        assert_eq!(Connect::decode(&positions(201), &mut Vec::new()).unwrap_err().field.as_deref(), Some("positions"));
        assert_eq!(
            Connect::decode(r#"{"token":"t","device":"d d"}"#, &mut Vec::new()).unwrap_err().field.as_deref(),
            Some("device")
        );
        assert_eq!(Connect::decode("{}", &mut Vec::new()).unwrap_err().field.as_deref(), Some("token"));
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_panic(json in ".{0,200}", index in 0..crate::operation::OPERATIONS.len()) {
            let _ = decode(crate::operation::OPERATIONS[index].op, &json);
        }
    }
}
