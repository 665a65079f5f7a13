//! What is said, in flags: the same for one user and for a broadcast.

use proto::push::v1::{
    CustomerContent, CustomerText, MiniProgramLink, SubscribeContent, TemplateContent,
    create_broadcast_request, customer_content, send_message_request,
};

/// What is said.
#[derive(Debug, clap::Args)]
pub(crate) struct ContentArgs {
    #[command(flatten)]
    kind: Kind,
    /// A value of the template, by keyword, such as thing1=茶; once for each
    #[arg(long, value_name = "KEYWORD=VALUE", value_parser = pair, conflicts_with = "text")]
    data: Vec<(String, String)>,
    /// With --template: what a tap opens
    #[arg(long, conflicts_with_all = ["subscribe", "text"])]
    url: Option<String>,
    /// With --template: the mini program's page that a tap opens; wins over --url
    #[arg(long, value_name = "APP_ID:PAGE", value_parser = mini_program, conflicts_with_all = ["subscribe", "text"])]
    mini_program: Option<(String, String)>,
    /// With --subscribe: the page that a tap opens
    #[arg(long, conflicts_with_all = ["template", "text"])]
    page: Option<String>,
    /// With --subscribe: the edition that a tap opens [default: formal]
    #[arg(long, value_name = "STATE", value_parser = ["developer", "trial", "formal"], conflicts_with_all = ["template", "text"])]
    mini_program_state: Option<String>,
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct Kind {
    /// An official account's template message, by the template's id
    #[arg(long, value_name = "TEMPLATE_ID")]
    template: Option<String>,
    /// A mini program's subscribe message, by the template's id
    #[arg(long, value_name = "TEMPLATE_ID")]
    subscribe: Option<String>,
    /// A customer-service message of this text
    #[arg(long)]
    text: Option<String>,
}

/// What is said, for whichever request carries it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Content {
    Template(TemplateContent),
    Subscribe(SubscribeContent),
    Customer(CustomerContent),
}

impl From<ContentArgs> for Content {
    fn from(args: ContentArgs) -> Self {
        let data = args.data.into_iter().collect();
        match args.kind {
            Kind {
                template: Some(template_id),
                ..
            } => Self::Template(TemplateContent {
                template_id,
                url: args.url.unwrap_or_default(),
                mini_program: args
                    .mini_program
                    .map(|(app_id, page_path)| MiniProgramLink { app_id, page_path }),
                data,
            }),
            Kind {
                subscribe: Some(template_id),
                ..
            } => Self::Subscribe(SubscribeContent {
                template_id,
                page: args.page.unwrap_or_default(),
                data,
                mini_program_state: args.mini_program_state.unwrap_or_default(),
                lang: String::new(),
            }),
            Kind { text, .. } => {
                let content = text.unwrap_or_default();
                let text = customer_content::Message::Text(CustomerText { content });
                Self::Customer(CustomerContent {
                    message: Some(text),
                    ..CustomerContent::default()
                })
            }
        }
    }
}

impl From<Content> for send_message_request::Content {
    fn from(content: Content) -> Self {
        match content {
            Content::Template(template) => Self::Template(template),
            Content::Subscribe(subscribe) => Self::Subscribe(subscribe),
            Content::Customer(customer) => Self::Customer(customer),
        }
    }
}

impl From<Content> for create_broadcast_request::Content {
    fn from(content: Content) -> Self {
        match content {
            Content::Template(template) => Self::Template(template),
            Content::Subscribe(subscribe) => Self::Subscribe(subscribe),
            Content::Customer(customer) => Self::Customer(customer),
        }
    }
}

fn pair(text: &str) -> Result<(String, String), &'static str> {
    let pair = text.split_once('=');
    let (keyword, value) = pair.ok_or("must be KEYWORD=VALUE, such as thing1=茶")?;
    Ok((keyword.to_owned(), value.to_owned()))
}

fn mini_program(text: &str) -> Result<(String, String), &'static str> {
    let pair = text.split_once(':');
    let (app_id, page) =
        pair.ok_or("must be APP_ID:PAGE, such as wx0000000000000001:pages/order?id=1")?;
    Ok((app_id.to_owned(), page.to_owned()))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        content: ContentArgs,
    }

    fn parse(flags: &[&str]) -> Result<Content, clap::Error> {
        let args = ["send"].iter().chain(flags);
        Ok(Command::try_parse_from(args)?.content.into())
    }

    #[test]
    fn flags_say_what_is_said() {
        let flags = [
            "--template",
            "T",
            "--data",
            "thing1=a=b",
            "--data",
            "time2=",
            "--mini-program",
            "wx1:pages/x?a=b:c",
        ];
        let Content::Template(template) = parse(&flags).unwrap() else {
            panic!("no template");
        };
        let data = [("thing1", "a=b"), ("time2", "")];
        let data = data.map(|(keyword, value)| (keyword.to_owned(), value.to_owned()));
        assert_eq!(template.data, data.into());
        let link = template.mini_program.unwrap();
        assert_eq!(
            (link.app_id.as_str(), link.page_path.as_str()),
            ("wx1", "pages/x?a=b:c")
        );

        let flags = [
            "--subscribe",
            "S",
            "--page",
            "p",
            "--mini-program-state",
            "trial",
        ];
        let Content::Subscribe(subscribe) = parse(&flags).unwrap() else {
            panic!("no subscribe message");
        };
        assert_eq!(
            (
                subscribe.page.as_str(),
                subscribe.mini_program_state.as_str()
            ),
            ("p", "trial")
        );
        assert!(matches!(
            parse(&["--text", "你好"]).unwrap(),
            Content::Customer(_)
        ));
    }

    #[test]
    fn flags_that_do_not_go_together_are_refused() {
        for flags in [
            &[][..],
            &["--template", "T", "--text", "hello"],
            &["--text", "hello", "--data", "a=b"],
            &["--template", "T", "--data", "thing1"],
            &["--template", "T", "--page", "p"],
            &["--subscribe", "S", "--url", "https://example.com"],
            &["--subscribe", "S", "--mini-program-state", "draft"],
            &["--template", "T", "--mini-program", "wx1"],
        ] {
            assert!(parse(flags).is_err(), "{flags:?}");
        }
    }
}
