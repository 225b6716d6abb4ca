//! Tables: columns without borders. On a terminal they fit its width; elsewhere one record is one line.

use comfy_table::presets::NOTHING;
use comfy_table::{ContentArrangement, Table};

use super::out::{COLUMNS, Style};

/// `rows` under `heads`. Trailing blanks are cut off; ends with a newline. Without rows it is empty.
pub(super) fn table(style: Style, heads: &[&str], rows: Vec<Vec<String>>) -> String {
    indented(style, "", heads, rows)
}

pub(super) fn indented(style: Style, indent: &str, heads: &[&str], rows: Vec<Vec<String>>) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(heads.iter().copied());
    if style.terminal {
        let indent = u16::try_from(indent.len()).unwrap_or(0);
        table.set_content_arrangement(ContentArrangement::Dynamic).set_width(COLUMNS - indent);
    } else {
        table.set_content_arrangement(ContentArrangement::Disabled);
    }
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let mut text = String::new();
    for line in table.to_string().lines() {
        text.push_str(format!("{indent}{line}").trim_end());
        text.push('\n');
    }
    text
}
