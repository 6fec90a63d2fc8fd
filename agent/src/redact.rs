//! Quiet: what of a window may become a record. Everything that was seen passes here before it is kept anywhere.

use muster_mesh::{
    limits,
    policy::Policy,
    record::{Application, Source},
};

use crate::collect::sense::{Front, Window};

/// Programs' names are shorter; what is longer is no name.
const APPLICATION_CHARS_MAX: usize = 128;

/// What was in front, as a record may show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    pub application: Application,
    pub title: Option<String>,
    /// None: it couldn't be seen.
    pub source: Source,
}

/// Whether the title of a program's window may be read at all. A program without a name could be any, so also an excluded one.
pub fn may_read_title(policy: &Policy, class: &str, instance: &str) -> bool {
    policy.titles && policy.applications && !is_private(policy, class, instance) && !clean(class, APPLICATION_CHARS_MAX).is_empty()
}

/// Applies the policy.
pub fn front(policy: &Policy, front: Front) -> Shown {
    let Window { source, class, instance, title } = match front {
        Front::Unseen => return Shown { application: Application::None, title: None, source: Source::None },
        Front::Nothing(source) => return Shown { application: Application::None, title: None, source },
        Front::Window(window) => window,
    };
    if is_private(policy, &class, &instance) {
        return Shown { application: Application::Private, title: None, source };
    }
    let title = title.filter(|_| may_read_title(policy, &class, &instance));
    let title = title.map(|title| clean(&title, limits::TITLE_CHARS_MAX)).filter(|title| !title.is_empty());
    let name = clean(&class, APPLICATION_CHARS_MAX);
    let application = if name.is_empty() { Application::None } else { Application::Named(name) };
    Shown { application, title, source }
}

fn is_private(policy: &Policy, class: &str, instance: &str) -> bool {
    [class, instance].into_iter().any(|name| policy.excludes(name) || policy.excludes(&clean(name, usize::MAX)))
}

/// Without control characters, and no longer than `chars_max`. Older programs put escape sequences into titles: they go as a whole.
fn clean(text: &str, chars_max: usize) -> String {
    let mut chars = text.chars();
    let mut clean = String::new();
    let mut length = 0;
    while let Some(c) = chars.next() {
        if c == '\u{1b}' {
            skip_sequence(&mut chars);
        } else if !c.is_control() {
            if length == chars_max {
                break;
            }
            clean.push(c);
            length += 1;
        }
    }
    clean.trim().to_owned()
}

/// What follows ESC: `[` … a final letter, or any marks from space to slash and one character more.
fn skip_sequence(chars: &mut std::str::Chars<'_>) {
    match chars.next() {
        Some('[') => {
            chars.find(|c| ('\u{40}'..='\u{7e}').contains(c));
        }
        Some(' '..='/') => {
            chars.find(|c| !(' '..='/').contains(c));
        }
        Some(_) | None => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::collect::sense::tests::policy;

    fn window(class: &str, title: &str) -> Front {
        Front::Window(Window { source: Source::X11, class: class.into(), instance: class.to_lowercase(), title: Some(title.into()) })
    }

    fn named(name: &str) -> Application {
        Application::Named(name.into())
    }

    fn shown(application: Application, title: Option<&str>) -> Shown {
        Shown { application, title: title.map(str::to_owned), source: Source::X11 }
    }

    #[test]
    fn an_excluded_application_has_no_name_and_no_title() {
        let policy = policy();
        for class in ["KeePassXC", "keepassxc", "KEEPASSXC\n", " KeePassXC "] {
            assert!(!may_read_title(&policy, class, ""), "{class:?}");
            assert_eq!(front(&policy, window(class, "my bank")), shown(Application::Private, None), "{class:?}");
        }
        let by_instance = Front::Window(Window {
            source: Source::X11,
            class: "Tool".into(),
            instance: "keepassxc".into(),
            title: Some("my bank".into()),
        });
        assert_eq!(front(&policy, by_instance).application, Application::Private);
    }

    #[test]
    fn a_title_stays_only_where_the_policy_allows_it() {
        let mut policy = policy();
        assert_eq!(front(&policy, window("Editor", "letter.txt")), shown(named("Editor"), Some("letter.txt")));
        policy.titles = false;
        assert!(!may_read_title(&policy, "Editor", "editor"));
        assert_eq!(front(&policy, window("Editor", "letter.txt")), shown(named("Editor"), None));
    }

    #[test]
    fn a_window_without_a_name_keeps_no_title() {
        assert_eq!(front(&policy(), window("\u{0}", "could be anything")), shown(Application::None, None));
        assert_eq!(front(&policy(), Front::Nothing(Source::X11)), shown(Application::None, None));
    }

    #[test]
    fn what_cannot_be_seen_has_no_source() {
        let shown = front(&policy(), Front::Unseen);
        assert_eq!(shown, Shown { application: Application::None, title: None, source: Source::None });
    }

    #[test]
    fn titles_lose_control_characters_and_are_cut_at_512() {
        assert_eq!(clean("a\0b\nc\u{7f}d\u{85}", 512), "abcd");
        assert_eq!(clean("\u{1b}%Gné\u{1b}[31mw\u{1b}(B title\u{1b}", 512), "néw title");
        assert_eq!(clean(&"ø".repeat(600), limits::TITLE_CHARS_MAX), "ø".repeat(512));
        assert_eq!(clean("\u{1b}[", 512), "");
    }
}
