//! Quiet: the API's description, made from the table of routes and from the types that are sent: `hub/openapi.json` is what it says.

use utoipa::{
    PartialSchema, ToSchema,
    openapi::{
        Components, ComponentsBuilder, Content, HttpMethod, Info, OpenApi, OpenApiBuilder, Paths, Ref, RefOr, Required, Response,
        ResponseBuilder, Schema,
        path::{Operation as Described, OperationBuilder, Parameter, ParameterBuilder, ParameterIn},
        request_body::RequestBodyBuilder,
        schema::{Object, Type},
        security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme},
    },
};

use super::{
    capabilities::CapabilityList,
    check::{Asked, CheckedList},
    days::{DayShown, FocusShown},
    deleted::DeletedList,
    devices::{DeviceList, DeviceShown, MissingShown},
    login::{Credentials, Token},
    looks::LookList,
    members::{Approval, Denial, Denied, MemberList, MemberShown, TokenEnded, TokenList, TokenMade, TokenWanted},
    pictures::PictureList,
    policy::PolicyShown,
    problem::Problem,
    relays::{RelayNamed, RelayPlace, RelayPlaces, RelayRemoved, RelaySet, SiteGuests},
    routes::{Access, Entry, Looks, Method, Operation, REASON_HEADER, ROUTES},
    summary::SummaryShown,
};

const TOKEN: &str = "token";

/// The whole description.
pub fn describe() -> OpenApi {
    let mut paths = Paths::new();
    let mut components = ComponentsBuilder::new().schema_from::<Problem>();
    for entry in ROUTES {
        let meaning = Meaning::of(entry.operation);
        paths.add_path_operation(entry.path, vec![method(entry)], meaning.describe(entry));
        for (name, schema) in meaning.types() {
            components = components.schema(name, schema);
        }
    }
    let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).bearer_format("JWT").build();
    let components: Components = components.security_scheme(TOKEN, SecurityScheme::Http(bearer)).build();
    let mut info = Info::new("muster-hub", "1");
    info.description = Some(
        "Who is working now, what was observed, what is kept and what was deleted. Each look at a person's data is written down.".into(),
    );
    OpenApiBuilder::new().info(info).paths(paths).components(Some(components)).build()
}

/// As the file has it: sorted, with a line's end.
pub fn text() -> Result<String, serde_json::Error> {
    Ok(format!("{}\n", describe().to_pretty_json()?))
}

/// What the table of routes doesn't say of an operation.
struct Meaning {
    summary: &'static str,
    body: Option<Named>,
    answer: Answered,
}

enum Answered {
    Json(Named),
    Picture,
}

/// A type that is sent, with all that it holds.
struct Named {
    name: String,
    all: Vec<(String, RefOr<Schema>)>,
}

impl Named {
    fn of<T: ToSchema>() -> Named {
        let mut all = vec![(T::name().into_owned(), <T as PartialSchema>::schema())];
        T::schemas(&mut all);
        Named { name: T::name().into_owned(), all }
    }

    fn content(&self) -> Content {
        Content::new(Some(Ref::from_schema_name(&self.name)))
    }
}

impl Meaning {
    fn of(operation: Operation) -> Meaning {
        match operation {
            Operation::Login => Meaning::taking::<Credentials, Token>("Name and password for a token that lives for a short while"),
            Operation::ListDevices => Meaning::giving::<DeviceList>("Devices, whose they are, and who is there now"),
            Operation::ShowDevice => Meaning::giving::<DeviceShown>("One device"),
            Operation::ShowDay => Meaning::giving::<DayShown>("A device's day, without the titles of windows"),
            Operation::ShowFocus => Meaning::giving::<FocusShown>("The windows of a day, with their titles where the policy allowed them"),
            Operation::ListPictures => Meaning::giving::<PictureList>("The pictures of a day, without the pictures themselves"),
            Operation::ShowPicture => Meaning { summary: "One picture", body: None, answer: Answered::Picture },
            Operation::ListCapabilities => Meaning::giving::<CapabilityList>("What a device can and can't measure, as it said last"),
            Operation::ShowMissing => Meaning::giving::<MissingShown>("What a device announced and isn't here"),
            Operation::ListLooks => Meaning::giving::<LookList>("Who looked at whose data, when, and why"),
            Operation::ShowPolicy => Meaning::giving::<PolicyShown>("The policy in force"),
            Operation::ShowSummary => Meaning::giving::<SummaryShown>("Counts over everything"),
            Operation::ListDeleted => Meaning::giving::<DeletedList>("What was deleted because its time was up"),
            Operation::CheckSpools => Meaning::taking::<Asked, CheckedList>("Proof of what is kept, number by number"),
            Operation::MakeToken => Meaning::taking::<TokenWanted, TokenMade>("A join token, for a relay or for employees' computers"),
            Operation::ListTokens => Meaning::giving::<TokenList>("Join tokens that can still be used"),
            Operation::EndToken => Meaning::giving::<TokenEnded>("Lets nobody join with a token any more"),
            Operation::ListMembers => Meaning::giving::<MemberList>("Who was enrolled, and who waits for an admin"),
            Operation::ApproveMember => Meaning::taking::<Approval, MemberShown>(
                "Says whose a waiting computer is, or lets one that came back too often in once more",
            ),
            Operation::DenyMember => Meaning::taking::<Denial, Denied>("Lets nobody take a member any more"),
            Operation::ListRelays => Meaning::giving::<RelayPlaces>("Where agents find relays, and whose agents may be guests"),
            Operation::SetRelay => Meaning::taking::<RelaySet, RelayPlace>("Says where agents find a relay"),
            Operation::RemoveRelay => Meaning::taking::<RelayNamed, RelayRemoved>("Leads no agent to a relay any more"),
            Operation::SetGuests => Meaning::taking::<SiteGuests, SiteGuests>("Says whose agents a site's relays take besides its own"),
        }
    }

    fn giving<A: ToSchema>(summary: &'static str) -> Meaning {
        Meaning { summary, body: None, answer: Answered::Json(Named::of::<A>()) }
    }

    fn taking<B: ToSchema, A: ToSchema>(summary: &'static str) -> Meaning {
        Meaning { body: Some(Named::of::<B>()), ..Meaning::giving::<A>(summary) }
    }

    fn types(self) -> impl Iterator<Item = (String, RefOr<Schema>)> {
        let answer = match self.answer {
            Answered::Json(named) => Some(named),
            Answered::Picture => None,
        };
        self.body.into_iter().chain(answer).flat_map(|named| named.all)
    }

    fn describe(&self, entry: &Entry) -> Described {
        let mut described = OperationBuilder::new()
            .operation_id(Some(entry.operation.id()))
            .summary(Some(self.summary))
            .parameters(Some(parameters(entry)))
            .response("200", self.answer())
            .response("default", problem("A problem, as RFC 9457 says"));
        if let Some(body) = &self.body {
            let body = RequestBodyBuilder::new().required(Some(Required::True)).content("application/json", body.content()).build();
            described = described.request_body(Some(body));
        }
        if entry.access == Access::Admin {
            let token = SecurityRequirement::new(TOKEN, Vec::<String>::new());
            described = described.security(token).response("401", problem("No token, or one that isn't good"));
        }
        if entry.looks == Looks::WithReason {
            described = described.response("400", problem("No reason was given"));
        }
        described.build()
    }

    fn answer(&self) -> Response {
        match &self.answer {
            Answered::Json(named) => ResponseBuilder::new().description(self.summary).content("application/json", named.content()).build(),
            Answered::Picture => {
                let bytes = || Content::new(None::<Ref>);
                ResponseBuilder::new().description(self.summary).content("image/webp", bytes()).content("image/jpeg", bytes()).build()
            }
        }
    }
}

fn problem(description: &str) -> Response {
    let problem = Content::new(Some(Ref::from_schema_name(Problem::name())));
    ResponseBuilder::new().description(description).content("application/problem+json", problem).build()
}

fn method(entry: &Entry) -> HttpMethod {
    match entry.method {
        Method::Get => HttpMethod::Get,
        Method::Post => HttpMethod::Post,
    }
}

fn parameters(entry: &Entry) -> Vec<Parameter> {
    let segments = entry.path.split('/').filter_map(|segment| segment.strip_prefix('{')?.strip_suffix('}'));
    let in_path = segments.map(|name| parameter(name, ParameterIn::Path, Required::True, what_is(name)));
    let in_query = entry.query.iter().map(|name| parameter(name, ParameterIn::Query, Required::False, what_is(name)));
    let mut parameters: Vec<_> = in_path.chain(in_query).collect();
    if entry.looks == Looks::WithReason {
        parameters.push(parameter(
            REASON_HEADER,
            ParameterIn::Header,
            Required::False,
            "The same as `reason`, for who can't write it there",
        ));
    }
    parameters
}

fn what_is(name: &str) -> &'static str {
    match name {
        "device" => "32 lower-case hex digits",
        "day" => "A civil day where the device is, such as 2026-11-23",
        "picture" => "32 lower-case hex digits, from the list of a day's pictures",
        "after" => "The last one of the page before",
        "token" => "16 lower-case hex digits, from the list of join tokens",
        "limit" => "How many at most",
        "since" => "A time as in RFC 3339",
        "reason" => "Why you look: 1 to 200 characters in one line; it is written down, and the person can read it",
        _ => "",
    }
}

fn parameter(name: &str, place: ParameterIn, required: Required, what: &str) -> Parameter {
    ParameterBuilder::new()
        .name(name)
        .parameter_in(place)
        .required(required)
        .description(Some(what))
        .schema(Some(Object::with_type(Type::String)))
        .build()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const KEPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/openapi.json");

    /// `muster-hub openapi > hub/openapi.json` writes it anew.
    #[test]
    fn the_kept_file_says_what_this_build_answers() {
        let kept = std::fs::read_to_string(KEPT).unwrap_or_default();
        assert!(kept == text().unwrap(), "hub/openapi.json is out of date: cargo run -p muster-hub -- openapi > hub/openapi.json");
        assert!(kept.contains("\"openapi\": \"3.1.0\""));
    }

    #[test]
    fn its_paths_and_methods_are_those_of_the_table() {
        let kept: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(KEPT).unwrap()).unwrap();
        let mut described = BTreeSet::new();
        for (path, item) in kept["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap() {
                described.insert((path.clone(), method.clone(), operation["operationId"].as_str().unwrap().to_owned()));
            }
        }
        let name = |method| match method {
            Method::Get => "get".to_owned(),
            Method::Post => "post".to_owned(),
        };
        let routes = ROUTES.iter().map(|entry| (entry.path.to_owned(), name(entry.method), entry.operation.id().to_owned()));
        assert_eq!(described, routes.collect());
    }

    #[test]
    fn every_type_that_is_named_is_described() {
        let kept: serde_json::Value = serde_json::from_str(&text().unwrap()).unwrap();
        let mut named = BTreeSet::new();
        references(&kept, &mut named);
        for name in &named {
            assert!(kept["components"]["schemas"].get(name).is_some(), "{name}");
        }
        assert!(named.len() > 20, "{named:?}");
        for entry in ROUTES {
            assert!(parameters(entry).iter().all(|parameter| parameter.description.as_ref().is_some_and(|what| !what.is_empty())));
        }
    }

    fn references(value: &serde_json::Value, named: &mut BTreeSet<String>) {
        match value {
            serde_json::Value::Object(fields) => {
                if let Some(name) = fields.get("$ref").and_then(|to| to.as_str()?.strip_prefix("#/components/schemas/")) {
                    named.insert(name.to_owned());
                }
                fields.values().for_each(|value| references(value, named));
            }
            serde_json::Value::Array(values) => values.iter().for_each(|value| references(value, named)),
            _ => {}
        }
    }
}
