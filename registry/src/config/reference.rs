//! The reference and the JSON schema, made from the table of keys.

use serde_json::{Map, Value as Json, json};

use super::env::OTHER_VARIABLES;
use super::key::{Effect, Key};
use super::schema::{KEYS, SECTIONS};

const INTRODUCTION: &str = "\
# Configuration

<!-- Generated from registry/src/config/schema.rs. To change it, change the table there and run
     `TERSOR_REGENERATE=1 cargo test -p tersor-registry config::reference`. -->

`tersor.toml` is read from the place that the caller or `TERSOR_CONFIG` names, from
`$XDG_CONFIG_HOME/tersor/tersor.toml` (else `~/.config/tersor/tersor.toml`) and from `/etc/tersor/tersor.toml`. The
current directory is not searched.
A value is taken from the first of these that has it, each key by itself:

1. command-line flags: `--set KEY=VALUE` for every key; some have a flag of their own, which is stronger,
2. environment variables,
3. the file given,
4. the user's file,
5. the system's file,
6. the default.

`RAYON_NUM_THREADS` counts as a source of `threads.count` between 2 and 3.

An unknown key, a wrong type and a value out of range are errors that name file, line and column. A key marked
*not yet* is checked and kept, has no effect in this version, and setting it gives a warning. An environment variable that
starts with `TERSOR_` and means nothing gives a warning too.

**In environment variables** booleans are `1`, `true`, `0` or `false`; list elements are parted by commas, paths as in
`PATH`; an empty variable is an empty list, and an error for keys that are not lists. `auto` is how a key is
left unset, or unset again where a weaker layer set it. A list replaces the list of a weaker layer.

An editor that knows JSON schemas checks the file while you type: `tersor.schema.json`, next to this page.
";

/// A file for the page, which a test reads.
const EXAMPLE: &str = "\
[select]
device = \"cuda-or-cpu\"
deny = [\"scalar\"]
formats.tl1 = \"cpu-avx2\"

[threads]
count = 8

[memory]
pool = \"512MiB\"
";

/// The reference of all keys, `docs/configuration.md`.
pub fn markdown() -> String {
    let mut page = format!("{INTRODUCTION}\n```toml\n{EXAMPLE}```\n");
    for section in SECTIONS {
        page += &format!("\n## `[{}]`\n\n{}\n\n", section.path, one_line(section.doc));
        page += "| key | default | value | environment | meaning |\n|---|---|---|---|---|\n";
        KEYS.iter().filter(|key| key.section == section.path).for_each(|key| page += &row(key));
    }
    page += "\n## Other environment variables\n\nThese have no key.\n\n| variable | meaning |\n|---|---|\n";
    for other in OTHER_VARIABLES {
        page += &format!("| `{}` | {}{} |\n", other.name, not_yet(other.effect), other.doc);
    }
    page
}

fn row(key: &Key) -> String {
    let name = key.path.rsplit('.').next().unwrap_or_default();
    let alias = key.alias.map(|alias| format!(", short `{alias}`")).unwrap_or_default();
    format!(
        "| `{name}` | `{}` | {} | `{}`{alias} | {}{} |\n",
        key.default_value(),
        key.expected(),
        key.variable(),
        not_yet(key.effect),
        one_line(key.doc),
    )
}

fn not_yet(effect: Effect) -> &'static str {
    if effect == Effect::Later { "*Not yet.* " } else { "" }
}

fn one_line(doc: &str) -> String {
    doc.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The JSON schema of `tersor.toml`, `docs/tersor.schema.json`.
pub fn json_schema() -> String {
    let mut root = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "tersor.toml",
        "type": "object",
        "additionalProperties": false,
        "properties": {},
    });
    for section in SECTIONS {
        let mut object = json!({
            "description": one_line(section.doc),
            "type": "object",
            "additionalProperties": false,
        });
        let keys = KEYS.iter().filter(|key| key.section == section.path);
        object["properties"] = keys.map(|key| (leaf(key.path).to_owned(), property(key))).collect::<Map<_, _>>().into();
        // A section comes after the one that holds it, whose "properties" therefore exist.
        let parents = section.path.rsplit_once('.').map_or("", |(parents, _)| parents);
        let names = parents.split('.').filter(|name| !name.is_empty());
        let holder = names.fold(&mut root, |at, name| &mut at["properties"][name]);
        holder["properties"][leaf(section.path)] = object;
    }
    format!("{root:#}\n")
}

fn leaf(path: &str) -> &str {
    path.rsplit('.').next().unwrap_or_default()
}

fn property(key: &Key) -> Json {
    let later = if key.effect == Effect::Later { "Not yet effective. " } else { "" };
    let mut schema = json!({
        "description": format!("{later}{} Environment: {}.", one_line(key.doc), key.variable()),
        "default": key.default_value(),
    });
    if let (Json::Object(all), Json::Object(own)) = (&mut schema, (key.schema)()) {
        // The key's own words are about the key, the type's about any value of the type.
        for (name, value) in own {
            all.entry(name).or_insert(value);
        }
    }
    schema
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Compares a file under docs/ with what the table says, or writes it when `TERSOR_REGENERATE=1`.
    fn check(name: &str, generated: &str) {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(name);
        if std::env::var_os("TERSOR_REGENERATE").is_some_and(|value| value == "1") {
            std::fs::write(&path, generated).unwrap();
        }
        let written = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            written == generated,
            "docs/{name} is not what the table of keys says; run\n  \
             TERSOR_REGENERATE=1 cargo test -p tersor-registry config::reference"
        );
    }

    #[test]
    fn the_page_in_docs_is_what_the_table_says() {
        check("configuration.md", &markdown());
    }

    #[test]
    fn the_schema_in_docs_is_what_the_table_says() {
        check("tersor.schema.json", &json_schema());
    }

    #[test]
    fn the_schema_describes_every_key_and_nothing_else() {
        let schema: Json = serde_json::from_str(&json_schema()).unwrap();
        for key in KEYS {
            let pointer = format!("/properties/{}", key.path.replace('.', "/properties/"));
            assert!(schema.pointer(&pointer).is_some_and(|it| it["description"].is_string()), "{}", key.path);
        }
        let properties = schema.to_string().matches("Environment: TERSOR_").count();
        assert_eq!(properties, KEYS.len());
    }

    #[test]
    fn the_example_on_the_page_is_accepted() {
        super::super::Config::from_toml_str(EXAMPLE).unwrap();
    }

    #[test]
    fn no_cell_breaks_its_table() {
        for line in markdown().lines().filter(|line| line.starts_with('|')) {
            let bars = line.matches('|').count();
            assert!(bars == 6 || bars == 3, "{line}");
        }
    }
}
