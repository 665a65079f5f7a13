//! XML to JSON: an element with children is an object, any other its text; a name that repeats
//! makes an array.

use quick_xml::{Reader, escape::resolve_predefined_entity, events::Event};
use serde_json::{Map, Value};

use super::ParseError;

/// Deeper nesting is refused; WeChat's own stays below six.
const MAX_DEPTH: usize = 16;

/// An element that is still open.
#[derive(Default)]
struct Open {
    name: String,
    children: Map<String, Value>,
    text: String,
}

impl Open {
    fn close(self) -> (String, Value) {
        let value = if self.children.is_empty() {
            Value::String(self.text)
        } else {
            Value::Object(self.children)
        };
        (self.name, value)
    }

    fn add(&mut self, name: String, value: Value) {
        match self.children.get_mut(&name) {
            None => {
                self.children.insert(name, value);
            }
            Some(Value::Array(values)) => values.push(value),
            Some(first) => *first = Value::Array(vec![first.take(), value]),
        }
    }
}

/// The fields of the document's one root element.
pub(super) fn fields(text: &str) -> Result<Value, ParseError> {
    let mut reader = Reader::from_str(text);
    reader.config_mut().expand_empty_elements = true;
    let mut open: Vec<Open> = Vec::new();
    let mut root = None;
    loop {
        let event = reader.read_event().map_err(|_| ParseError::Xml)?;
        if let (Event::Start(_) | Event::CData(_) | Event::GeneralRef(_), Some(_)) = (&event, &root)
        {
            return Err(ParseError::Xml);
        }
        match event {
            Event::Start(start) => {
                if open.len() == MAX_DEPTH {
                    return Err(ParseError::TooDeep);
                }
                open.push(Open {
                    name: start.name().as_ref().to_owned(),
                    ..Open::default()
                });
            }
            Event::End(_) => {
                let (name, value) = open.pop().ok_or(ParseError::Xml)?.close();
                match open.last_mut() {
                    Some(parent) => parent.add(name, value),
                    None => root = Some(value),
                }
            }
            Event::Text(text) => match open.last_mut() {
                Some(element) => element.text.push_str(&text),
                None if text.trim().is_empty() => {}
                None => return Err(ParseError::Xml),
            },
            Event::CData(text) => open.last_mut().ok_or(ParseError::Xml)?.text.push_str(&text),
            Event::GeneralRef(reference) => {
                let text = &mut open.last_mut().ok_or(ParseError::Xml)?.text;
                match reference.resolve_char_ref().map_err(|_| ParseError::Xml)? {
                    Some(c) => text.push(c),
                    None => text
                        .push_str(resolve_predefined_entity(&reference).ok_or(ParseError::Entity)?),
                }
            }
            Event::DocType(_) => return Err(ParseError::Entity),
            Event::Empty(_) | Event::Comment(_) | Event::Decl(_) | Event::PI(_) => {}
            Event::Eof => break,
        }
    }
    match root {
        Some(Value::Object(fields)) if open.is_empty() => Ok(Value::Object(fields)),
        _ => Err(ParseError::Xml),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn elements_become_texts_objects_and_arrays() {
        let text = "<?xml version=\"1.0\"?>\n<xml a=\"1\"><!-- c --><t><![CDATA[ x ]]>y</t><n> 1 </n><e/><e></e>\
                    <o>\n<i>1</i>\n<i>2</i><i>3</i></o></xml>\n";
        assert_eq!(
            fields(text),
            Ok(json!({"t": " x y", "n": " 1 ", "e": ["", ""], "o": {"i": ["1", "2", "3"]}}))
        );
    }

    #[test]
    fn predefined_entities_and_characters_by_number_are_resolved() {
        assert_eq!(
            fields("<xml><a>&lt;&amp;&gt;&quot;&apos;&#20013;&#x6587;</a></xml>"),
            Ok(json!({"a": "<&>\"'中文"}))
        );
    }

    #[test]
    fn entities_and_document_types_are_refused() {
        for text in [
            "<!DOCTYPE xml><xml><a>1</a></xml>",
            "<!DOCTYPE xml [<!ENTITY x SYSTEM \"file:///etc/passwd\">]><xml><a>&x;</a></xml>",
            "<xml><a>&x;</a></xml>",
            "<xml><!DOCTYPE xml><a>1</a></xml>",
        ] {
            assert_eq!(fields(text), Err(ParseError::Entity), "{text}");
        }
    }

    #[test]
    fn what_is_not_one_well_formed_element_is_refused() {
        for text in [
            "<xml>",
            "<xml><a>1</xml>",
            "<xml><a>1</a>",
            "<xml><a>1</b></xml>",
            "<xml>1</xml>",
            "<xml/>",
            "<xml><a>1</a></xml><xml><a>2</a></xml>",
            "<xml><a>1</a></xml>x",
            "<xml><a>1</a></xml><![CDATA[x]]>",
            "x<xml><a>1</a></xml>",
            "<xml><a>& b</a></xml>",
            "<xml><a>&#0;</a></xml>",
            "<xml><a><![CDATA[1</a></xml>",
            "<!-- only -->",
        ] {
            assert_eq!(fields(text), Err(ParseError::Xml), "{text}");
        }
    }

    #[test]
    fn deep_nesting_is_refused() {
        let nested = |depth| format!("{}1{}", "<a>".repeat(depth), "</a>".repeat(depth));
        assert!(fields(&nested(MAX_DEPTH)).is_ok());
        assert_eq!(fields(&nested(MAX_DEPTH + 1)), Err(ParseError::TooDeep));
    }
}
