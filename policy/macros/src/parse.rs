//! From tokens to arguments and a function, whatever they say.

use proc_macro2::TokenStream;
use syn::{
    Attribute, Error, Expr, Ident, LitStr, Result, Signature, Token, Visibility, braced,
    ext::IdentExt,
    parse::{Parse, ParseStream, Parser},
    token::Brace,
};

/// `name = value`
pub(crate) struct Argument {
    pub(crate) name: Ident,
    pub(crate) value: Expr,
}

/// What stands in the attribute's parentheses.
pub(crate) struct Arguments(pub(crate) Vec<Argument>);

impl Parse for Arguments {
    fn parse(input: ParseStream<'_>) -> Result<Self> {
        let mut all = Vec::new();
        while !input.is_empty() {
            if !input.peek(Ident::peek_any) {
                return Err(input.error("arguments are written `name = value`"));
            }
            let name = input.call(Ident::parse_any)?;
            if !input.peek(Token![=]) {
                let problem = format!("`{name}` needs a value: `{name} = ...`");
                return Err(Error::new(name.span(), problem));
            }
            input.parse::<Token![=]>()?;
            all.push(Argument { name, value: input.parse()? });
            if !input.is_empty() {
                input.parse::<Token![,]>()?;
            }
        }
        Ok(Self(all))
    }
}

/// A function with its body as it was written: what stands there is the compiler's business.
pub(crate) struct Function {
    pub(crate) attributes: Vec<Attribute>,
    pub(crate) visibility: Visibility,
    pub(crate) signature: Signature,
    pub(crate) brace: Brace,
    pub(crate) inner_attributes: Vec<Attribute>,
    pub(crate) body: TokenStream,
}

impl Function {
    /// `attribute` is for what an error says.
    pub(crate) fn parse(attribute: &str, item: TokenStream) -> Result<Self> {
        let parser = |input: ParseStream<'_>| {
            let attributes = input.call(Attribute::parse_outer)?;
            let visibility = input.parse()?;
            if !begins_function(input) {
                return Err(input.error(format!("`#[{attribute}]` goes on a function")));
            }
            let signature = input.parse()?;
            if !input.peek(Brace) {
                return Err(input.error(format!(
                    "`#[{attribute}]` needs a body to run: put it on the function that has one, such \
                     as the method of the `impl`"
                )));
            }
            let content;
            Ok(Self {
                attributes,
                visibility,
                signature,
                brace: braced!(content in input),
                inner_attributes: content.call(Attribute::parse_inner)?,
                body: content.parse()?,
            })
        };
        parser.parse2(item)
    }
}

fn begins_function(input: ParseStream<'_>) -> bool {
    let ahead = input.fork();
    // Each of these can begin other items too.
    while ahead.parse::<Token![const]>().is_ok()
        || ahead.parse::<Token![async]>().is_ok()
        || ahead.parse::<Token![unsafe]>().is_ok()
        || ahead.parse::<Token![extern]>().is_ok()
    {
        let _ = ahead.parse::<LitStr>();
    }
    ahead.peek(Token![fn])
}
