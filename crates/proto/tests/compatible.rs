//! The API does not break: what a client of an earlier version knows is still there and means the same. And it reads as one:
//! the conventions of `buf lint`, and a comment where one is needed.
//!
//! `UPDATE_API=1 cargo test --release --workspace --test compatible` takes additions into the snapshot.
#![allow(clippy::unwrap_used, reason = "a test")]

use deepcluster_proto::DESCRIPTOR_SET;
use prost::Message;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, EnumDescriptorProto, FileDescriptorSet};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

fn snapshot() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/api.txt")
}

fn now() -> FileDescriptorSet {
    FileDescriptorSet::decode(DESCRIPTOR_SET).unwrap()
}

/// Everything that a client may rely on, a line each.
fn promises(set: &FileDescriptorSet) -> BTreeSet<String> {
    let mut lines = BTreeSet::new();
    for file in set.file.iter().filter(|file| file.package() == "deepcluster.v1") {
        for message in &file.message_type {
            promises_of(file.package(), message, &mut lines);
        }
        for one in &file.enum_type {
            promises_of_enum(file.package(), one, &mut lines);
        }
        for service in &file.service {
            for method in &service.method {
                let stream = |yes| if yes { "stream " } else { "" };
                let (asks, answers) = (stream(method.client_streaming()), stream(method.server_streaming()));
                lines.insert(format!(
                    "rpc {}.{}.{}({asks}{}) returns ({answers}{})",
                    file.package(),
                    service.name(),
                    method.name(),
                    method.input_type(),
                    method.output_type()
                ));
            }
        }
    }
    lines
}

fn promises_of(scope: &str, message: &DescriptorProto, lines: &mut BTreeSet<String>) {
    let name = format!("{scope}.{}", message.name());
    for field in &message.field {
        let kind = match field.r#type() {
            Type::Message | Type::Enum => field.type_name().to_owned(),
            plain => plain.as_str_name().to_owned(),
        };
        let oneof = field.oneof_index.map(|at| message.oneof_decl[at as usize].name().to_owned()).unwrap_or_default();
        let repeated = if field.label() == Label::Repeated { "repeated " } else { "" };
        lines.insert(
            format!("field {name}.{} = {}: {repeated}{kind} {oneof}", field.name(), field.number()).trim_end().to_owned(),
        );
    }
    for inner in &message.nested_type {
        promises_of(&name, inner, lines);
    }
    for inner in &message.enum_type {
        promises_of_enum(&name, inner, lines);
    }
}

fn promises_of_enum(scope: &str, one: &EnumDescriptorProto, lines: &mut BTreeSet<String>) {
    for value in &one.value {
        lines.insert(format!("value {scope}.{}.{} = {}", one.name(), value.name(), value.number()));
    }
}

#[test]
fn nothing_that_clients_rely_on_is_gone() {
    let now = promises(&now());
    if std::env::var_os("UPDATE_API").is_some() {
        let text: String = now.iter().map(|line| format!("{line}\n")).collect();
        take_in(&snapshot(), &text);
    }
    let before: BTreeSet<String> = std::fs::read_to_string(snapshot()).unwrap().lines().map(str::to_owned).collect();
    let broken: Vec<_> = before.difference(&now).collect();
    assert!(broken.is_empty(), "clients of before would break: {broken:#?}");
    let new: Vec<_> = now.difference(&before).collect();
    assert!(new.is_empty(), "not in the snapshot yet (UPDATE_API=1 takes them in): {new:#?}");
}

#[expect(clippy::disallowed_methods, reason = "a file of the repository, not of a volume")]
fn take_in(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
}

#[test]
fn the_conventions_hold() {
    let mut wrong = Vec::new();
    let mut requests = BTreeMap::new();
    for file in now().file.iter().filter(|file| file.package() == "deepcluster.v1") {
        for one in &file.enum_type {
            let prefix = upper_snake(one.name());
            if one.value[0].name() != format!("{prefix}_UNSPECIFIED") || one.value[0].number() != 0 {
                wrong.push(format!("{}: its zero is not {prefix}_UNSPECIFIED", one.name()));
            }
            wrong.extend(
                one.value.iter().filter(|value| !value.name().starts_with(&format!("{prefix}_"))).map(|v| v.name().to_owned()),
            );
        }
        let snake = |name: &str| name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
        let fields = file.message_type.iter().flat_map(|message| &message.field);
        wrong.extend(fields.filter(|field| !snake(field.name())).map(|field| field.name().to_owned()));
        let methods = file.service.iter().flat_map(|service| service.method.iter().map(move |method| (service.name(), method)));
        for (service, method) in methods {
            let types = [(method.input_type(), "Request"), (method.output_type(), "Response")];
            for (used, ending) in types {
                // With the service's name where another service has a method of that name, as buf has it.
                let names = [method.name().to_owned(), format!("{service}{}", method.name())];
                if !names.iter().any(|name| used == format!(".deepcluster.v1.{name}{ending}")) {
                    wrong.push(format!("{} has {used}", method.name()));
                }
                if let Some(other) = requests.insert(used.to_owned(), method.name().to_owned()) {
                    wrong.push(format!("{used} serves {} and {other}", method.name()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

fn upper_snake(name: &str) -> String {
    let mut text = String::new();
    for (at, c) in name.char_indices() {
        if c.is_ascii_uppercase() && at > 0 {
            text.push('_');
        }
        text.push(c.to_ascii_uppercase());
    }
    text
}
