//! `os-server-groups`.

use axum::extract::State;
use axum::{Extension, Json};
use serde_json::{Value, json};
use turnaround_workflows::ports::{GroupRule, ServerGroup};

use super::{Answer, Bearer, Minor, PAGE_MAX, Query, Refusal, Shared, only_admin};

/// From here on a group has one policy, and rules.
const RULES: Minor = Minor(64);

fn document(place: usize, group: &ServerGroup, minor: Minor) -> Value {
    let policy = match group.rule {
        GroupRule::AntiAffinity { .. } => "anti-affinity",
        GroupRule::Affinity => "affinity",
    };
    let mut document = json!({
        "id": format!("00000000-0000-4000-8000-{place:012x}"),
        "name": group.name,
        "members": group.members,
        "project_id": "tenant-a",
        "user_id": "tenant-a-user",
    });
    if minor >= RULES {
        document["policy"] = json!(policy);
        document["rules"] = match group.rule {
            // 1 is the default, and not told.
            GroupRule::AntiAffinity { max_on_a_host } if max_on_a_host > 1 => json!({ "max_server_per_host": max_on_a_host }),
            GroupRule::AntiAffinity { .. } | GroupRule::Affinity => json!({}),
        };
    } else {
        document["policies"] = json!([policy]);
        document["metadata"] = json!({});
    }
    document
}

/// By `limit` and `offset`, without links.
pub(super) async fn list(State(nova): Shared, Extension(bearer): Extension<Bearer>, Extension(minor): Extension<Minor>, query: Query) -> Answer {
    only_admin(&bearer, "os_compute_api:os-server-groups:index:all_projects")?;
    let number = |key: &str, otherwise: usize| match query.get(key).map(|number| number.parse::<usize>()) {
        None => Ok(otherwise),
        Some(Ok(number)) => Ok(number),
        Some(Err(_)) => Err(Refusal::new(400, format!("Invalid input for query parameters {key}."))),
    };
    let (limit, offset) = (number("limit", PAGE_MAX)?.min(PAGE_MAX), number("offset", 0)?);
    // Only those of the token's own project, of which the simulated site has none, unless all are asked for.
    let all = if query.contains_key("all_projects") { nova.world.server_groups()? } else { Vec::new() };
    let page: Vec<Value> = all.iter().enumerate().skip(offset).take(limit).map(|(place, group)| document(place, group, minor)).collect();
    Ok(Json(json!({ "server_groups": page })))
}
