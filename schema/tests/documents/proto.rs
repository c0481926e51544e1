//! The proto file, and the code that is made from it.

use std::{collections::BTreeMap, fs};

use chappe_schema::proto::{DESCRIPTORS, rpc::PACKAGE, v1};
use prost::Message as _;
use prost_types::{
    DescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet,
    field_descriptor_proto::{Label, Type},
};

use super::{golden, root};

/// Everything that the proto files say, comments included.
pub(crate) fn descriptors() -> FileDescriptorSet {
    let folder = root().join("schema/proto");
    let files = ["chappe/v1/chappe.proto", "chappe/v1/realtime.proto"];
    protox::compile(files.map(|file| folder.join(file)), [folder]).unwrap()
}

/// The package's file of this name.
pub(crate) fn file(name: &str) -> FileDescriptorProto {
    descriptors().file.into_iter().find(|file| file.package() == PACKAGE && file.name().ends_with(name)).unwrap()
}

/// How a field is written as JSON, where serde does not know by itself.
fn attributes(message: &DescriptorProto, field: &FieldDescriptorProto) -> String {
    let is_list = field.label() == Label::Repeated;
    let optional = field.proto3_optional();
    let with = |to: &str, from: &str| {
        format!("serialize_with = \"super::json::{to}\", deserialize_with = \"super::json::{from}\"")
    };
    let is_map = message.nested_type.iter().any(|nested| {
        field.type_name().ends_with(&format!(".{}", nested.name()))
            && nested.options.as_ref().is_some_and(|options| options.map_entry())
    });
    let form = match (field.r#type(), field.name()) {
        (Type::Enum, _) => {
            let word = field.type_name().rsplit('.').next().unwrap();
            if optional {
                with(&format!("optional_word::<{word}, _>"), &format!("from_optional_word::<{word}, _>"))
            } else {
                with(&format!("word::<{word}, _>"), &format!("from_word::<{word}, _>"))
            }
        }
        (Type::Message, _) if field.type_name() == ".google.protobuf.Timestamp" => with("time", "from_time"),
        (Type::String, name @ ("body" | "data")) if optional => with(&format!("optional_{name}"), "from_optional_raw"),
        (Type::String, name @ ("body" | "data")) => with(name, "from_raw"),
        _ => String::new(),
    };
    let skip = match field.r#type() {
        _ if is_map => "",
        _ if is_list => "skip_serializing_if = \"Vec::is_empty\"",
        _ if optional => "skip_serializing_if = \"Option::is_none\"",
        Type::Message => "skip_serializing_if = \"Option::is_none\"",
        Type::Enum => "skip_serializing_if = \"super::json::is_unspecified\"",
        _ => "",
    };
    let parts: Vec<&str> = [form.as_str(), skip].into_iter().filter(|part| !part.is_empty()).collect();
    if parts.is_empty() { String::new() } else { format!("#[serde({})]", parts.join(", ")) }
}

#[test]
fn the_code_is_made_from_the_proto_file() {
    let set = descriptors();
    let mut config = prost_build::Config::new();
    let out = tempfile::tempdir().unwrap();
    config.out_dir(out.path()).btree_map(["."]);
    let messages = [file("/chappe.proto"), file("/realtime.proto")].into_iter().flat_map(|file| file.message_type);
    // A frame is one of many things, which JSON says otherwise.
    for message in messages.filter(|message| !matches!(message.name(), "ClientFrame" | "ServerFrame")) {
        let path = format!(".{PACKAGE}.{}", message.name());
        config.message_attribute(&path, "#[derive(serde::Serialize, serde::Deserialize)]\n#[serde(default)]");
        for field in &message.field {
            let attributes = attributes(&message, field);
            if !attributes.is_empty() {
                config.field_attribute(format!("{path}.{}", field.name()), attributes);
            }
        }
    }
    config.compile_fds(set.clone()).unwrap();
    golden("schema/src/proto/chappe.v1.rs", &fs::read(out.path().join("chappe.v1.rs")).unwrap());
    // Programs that ask have no use for comments.
    let mut bare = set;
    bare.file.iter_mut().for_each(|file| file.source_code_info = None);
    golden("schema/src/proto/chappe.v1.bin", &bare.encode_to_vec());
    assert_eq!(FileDescriptorSet::decode(DESCRIPTORS).unwrap().file.len(), bare.file.len());
}

/// The comments of a file, by their place in it.
pub(crate) fn comments(file: &FileDescriptorProto) -> BTreeMap<Vec<i32>, String> {
    let locations = &file.source_code_info.as_ref().unwrap().location;
    let said = |text: &str| text.lines().map(str::trim).collect::<Vec<_>>().join(" ").trim().to_owned();
    locations
        .iter()
        .filter(|location| location.leading_comments.is_some())
        .map(|location| (location.path.clone(), said(location.leading_comments())))
        .collect()
}

/// Every word of the language that clients see has its constant, so that none of them becomes "unspecified" on its way.
#[test]
fn every_word_has_its_constant() {
    use chappe_schema::{
        event::{ConversationKind, Encryption, HistoryAccess, Role},
        presence::Status,
        proto::json::Word,
    };
    fn known<W: Word>(name: &str) -> bool {
        W::number(&format!("{}{}", W::PREFIX, name.to_ascii_uppercase())).is_some_and(|number| number != 0)
    }
    for kind in [ConversationKind::Direct, ConversationKind::Group, ConversationKind::Channel] {
        assert!(known::<v1::ConversationKind>(kind.name()), "{}", kind.name());
    }
    for role in [Role::Member, Role::Admin, Role::Owner] {
        assert!(known::<v1::Role>(role.name()), "{}", role.name());
    }
    for history in [HistoryAccess::SinceJoin, HistoryAccess::All] {
        assert!(known::<v1::HistoryAccess>(history.name()), "{}", history.name());
    }
    for encryption in [Encryption::None, Encryption::Mls] {
        assert!(known::<v1::Encryption>(encryption.name()), "{}", encryption.name());
    }
    for status in [Status::Offline, Status::Away, Status::Online] {
        assert!(known::<v1::PresenceStatus>(status.name()), "{}", status.name());
    }
}

/// Every operation that a connection offers has its place in both frames, under one number.
#[test]
fn every_operation_has_its_number_in_frames() {
    use chappe_schema::operation::OPERATIONS;
    let file = file("/realtime.proto");
    let frame = |name: &str| file.message_type.iter().find(|message| message.name() == name).unwrap();
    for row in OPERATIONS {
        let rpc = row.op.rpc();
        let name = row.name.replace('.', "_");
        let found = |message: &DescriptorProto| {
            let field = message.field.iter().find(|field| field.name() == name)?;
            Some((field.number() as u32, field.type_name().rsplit('.').next().unwrap().to_owned()))
        };
        let asked = row.websocket.then(|| (rpc.field, rpc.request.to_owned()));
        assert_eq!(found(frame("ClientFrame")), asked, "{}", row.name);
        let answered = (row.websocket && rpc.reply != "Empty").then(|| (rpc.field, rpc.reply.to_owned()));
        assert_eq!(found(frame("ServerFrame")), answered, "{}", row.name);
    }
}

/// A connection's frames carry every operation, and say of each what its JSON says.
#[test]
fn every_operation_is_the_same_in_a_frame() {
    use super::openapi::arguments;
    use chappe_schema::{
        operation::OPERATIONS,
        proto::frame::{Answer, client_frame, server_frame},
    };
    use prost::encoding::{WireType, encode_key, encode_varint};
    for row in OPERATIONS.iter().filter(|row| row.websocket) {
        let rpc = row.op.rpc();
        let asked = arguments(row.op);
        let request = rpc.request(asked.to_string().as_bytes()).unwrap();
        let mut frame = vec![8, 7];
        encode_key(rpc.field, WireType::LengthDelimited, &mut frame);
        encode_varint(request.len() as u64, &mut frame);
        frame.extend_from_slice(&request);
        assert!(v1::ClientFrame::decode(&*frame).is_ok(), "{}", row.name);
        let json: serde_json::Value = serde_json::from_str(&client_frame(&frame).unwrap()).unwrap();
        assert_eq!(json, serde_json::json!({ "id": 7, row.name: asked }), "{}", row.name);

        let answered = serde_json::json!({ "id": 7, "ok": super::examples::reply(row.op) });
        let mut frame = Vec::new();
        server_frame(answered.to_string().as_bytes(), Answer::Op(row.op), &mut frame).unwrap();
        let frame = v1::ServerFrame::decode(&*frame).unwrap();
        assert_eq!((frame.id, frame.payload.is_some()), (Some(7), true), "{}", row.name);
    }
}
