//! `[[plugins.allow]]`: which plugins may be loaded.

use serde_json::{Value as Json, json};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::setting::{Problem, ProblemKind, Raw, Setting, Value};
use super::types::{ID_PATTERN, is_id};

/// A plugin that may be loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllowedPlugin {
    /// The name in the plugin's manifest.
    pub name: String,
    /// The SHA-256 of its library in lowercase hexadecimal; where absent, any library of that name may be loaded.
    pub sha256: Option<String>,
}

const FIELDS: &[&str] = &["name", "sha256"];

fn name(raw: Raw<'_>) -> Result<String, Problem> {
    let found = raw.text().filter(|text| is_id(text)).map(str::to_owned);
    found.ok_or_else(|| raw.problem("a plugin name such as \"acme-amx\"".into()))
}

fn sha256(raw: Raw<'_>) -> Result<String, Problem> {
    let is_hash = |text: &&str| text.len() == 64 && text.bytes().all(|c| c.is_ascii_hexdigit());
    let found = raw.text().filter(is_hash).map(str::to_ascii_lowercase);
    found.ok_or_else(|| raw.problem("a SHA-256 of 64 hexadecimal digits".into()))
}

fn from_table(table: &DeTable<'_>, node: Raw<'_>) -> Result<AllowedPlugin, Problem> {
    let field = |name: &str| table.get(name).map(|value: &Spanned<DeValue<'_>>| Raw::Toml(value));
    if let Some(unknown) = table.keys().find(|key| !FIELDS.contains(&key.get_ref().as_ref())) {
        let kind = ProblemKind::UnknownField { field: unknown.get_ref().to_string(), valid: FIELDS };
        return Err(Problem { span: Some(unknown.span()), kind });
    }
    let Some(given) = field("name") else {
        return Err(node.invalid("a table without `name`", AllowedPlugin::expected()));
    };
    Ok(AllowedPlugin { name: name(given)?, sha256: field("sha256").map(sha256).transpose()? })
}

impl Setting for AllowedPlugin {
    fn expected() -> String {
        "a table { name = \"...\", sha256 = \"...\" } (in an environment variable or a flag `name` or `name@sha256`), \
         the hash being optional"
            .into()
    }

    fn read(raw: Raw<'_>) -> Result<Self, Problem> {
        match raw {
            Raw::Toml(node) => match node.get_ref() {
                DeValue::Table(table) => from_table(table, raw),
                _ => Err(raw.problem(Self::expected())),
            },
            Raw::Text(text) => Ok(match text.split_once('@') {
                Some((before, hash)) => {
                    AllowedPlugin { name: name(Raw::Text(before))?, sha256: Some(sha256(Raw::Text(hash))?) }
                }
                None => AllowedPlugin { name: name(raw)?, sha256: None },
            }),
        }
    }

    fn value(&self) -> Value {
        let hash = self.sha256.clone().map(|hash| ("sha256", Value::Text(hash)));
        Value::Table([("name", Value::Text(self.name.clone()))].into_iter().chain(hash).collect())
    }

    fn schema() -> Json {
        json!({
            "type": "object",
            "properties": {
                "name": { "type": "string", "pattern": ID_PATTERN },
                "sha256": { "type": "string", "pattern": "^[0-9a-fA-F]{64}$" },
            },
            "required": ["name"],
            "additionalProperties": false,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::Config;

    const HASH: &str = "00112233445566778899AABBCCDDEEFF00112233445566778899aabbccddeeff";

    fn allow(line: &str) -> String {
        match Config::from_toml_str(&format!("[[plugins.allow]]\n{line}\n")) {
            Ok(config) => config.get("plugins.allow").unwrap().to_string(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn a_plugin_is_allowed_by_name_or_by_name_and_hash() {
        assert_eq!(allow("name = 'acme'"), r#"[{ name = "acme" }]"#);
        let pinned = allow(&format!("name = 'acme'\nsha256 = '{HASH}'"));
        assert_eq!(pinned, format!(r#"[{{ name = "acme", sha256 = "{}" }}]"#, HASH.to_lowercase()));
    }

    #[test]
    fn a_faulty_field_is_reported_at_its_own_place() {
        assert_eq!(
            allow("name = 'acme'\nsha265 = 'x'"),
            "<text>:3:1: unknown key `plugins.allow.sha265`; did you mean `plugins.allow.sha256`?"
        );
        assert_eq!(
            allow("name = 'acme'\nsha256 = 'abc'"),
            r#"<text>:3:10: `plugins.allow` is the string "abc"; expected a SHA-256 of 64 hexadecimal digits"#
        );
        assert!(allow("sha256 = 'abc'").starts_with("<text>:1:1: `plugins.allow` is a table without `name`; expected"));
    }
}
