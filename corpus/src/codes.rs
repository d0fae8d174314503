//! The pages of `docs/codes/`, as `hvci-audit explain CODE` prints them.

use hvci_engine::finding::Code;

include!(concat!(env!("OUT_DIR"), "/code_pages.rs"));

/// The page of a code, Markdown.
pub fn page(code: Code) -> &'static str {
    PAGES.iter().find(|(id, _)| *id == code.id()).map_or("", |(_, page)| page)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_its_page_and_every_page_its_code() {
        for code in Code::ALL {
            let head = format!("# {} {}\n", code.id(), code.alias());
            assert!(page(*code).starts_with(&head), "docs/codes/{}.md must begin with {head:?}", code.id());
            assert!(page(*code).contains(code.title()), "docs/codes/{}.md does not say {:?}", code.id(), code.title());
        }
        for (id, _) in PAGES {
            assert!(Code::find(id).is_some(), "docs/codes/{id}.md is for no code");
        }
    }
}
