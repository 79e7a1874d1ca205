//! What a function takes and returns: whether its body can run more than once.

use super::Problems;
use crate::parse::Function;
use proc_macro2::{Span, TokenStream, TokenTree};
use quote::{ToTokens, quote};
use syn::{
    Attribute, Error, FnArg, GenericArgument, Ident, Pat, PatIdent, PatType, Path, PathArguments,
    Receiver, ReceiverKind, Result, ReturnType, Signature, Token, Type, TypeReference,
    spanned::Spanned,
    visit_mut::{self, VisitMut},
};

/// A variable of the body that comes from an argument.
pub(crate) struct Binding {
    /// The `cfg`s of its argument.
    pub(crate) attributes: Vec<Attribute>,
    pub(crate) mutability: Option<Token![mut]>,
    pub(crate) ident: Ident,
    /// A shared reference: every attempt may have it as it is.
    pub(crate) shared: bool,
    /// Where to say that it is not `Clone`.
    pub(crate) span: Span,
}

/// The arguments: as the function takes them, and as each attempt gets them.
pub(crate) struct Bindings {
    /// Without `mut`: it is the attempt's copy that changes.
    pub(crate) signature: Signature,
    pub(crate) each: Vec<Binding>,
}

impl Bindings {
    pub(super) fn new(function: &Function, problems: &mut Problems) -> Self {
        let mut signature = function.signature.clone();
        if let Some(token) = signature.constness {
            problems.add(token, "a `const fn` cannot wait or retry: drop the `const`");
        }
        if let Some(abi) = &signature.abi {
            problems.add(
                abi,
                "an `extern` function has no policy: let it call a function that has one",
            );
        }
        let mut each = Vec::new();
        for input in &mut signature.inputs {
            match input {
                FnArg::Receiver(receiver) => self_is_shared(receiver, problems),
                FnArg::Typed(argument) => bind(argument, &function.body, &mut each, problems),
            }
        }
        Self { signature, each }
    }
}

fn self_is_shared(receiver: &Receiver, problems: &mut Problems) {
    match &receiver.kind {
        ReceiverKind::Reference(_, _, None) => {}
        ReceiverKind::Reference(and, lifetime, Some(token)) => {
            unique(quote!(#and #lifetime #token), problems);
        }
        ReceiverKind::Typed(_, ty) => match bare(ty) {
            Type::Reference(reference) if reference.mutability.is_none() => {}
            Type::Reference(reference) => unique(up_to_mut(reference), problems),
            _ => problems.add(ty, BY_VALUE),
        },
        _ => problems.add(receiver, BY_VALUE),
    }
}

const BY_VALUE: &str = "the first attempt would use up this `self`: take `&self`";

fn unique(at: TokenStream, problems: &mut Problems) {
    problems.add(
        at,
        "the body runs once per attempt, and what one attempt changed the next would find: take a \
         shared reference or a `Clone` value",
    );
}

fn up_to_mut(TypeReference { and_token, lifetime, mutability, .. }: &TypeReference) -> TokenStream {
    quote!(#and_token #lifetime #mutability)
}

fn bind(
    argument: &mut PatType,
    body: &TokenStream,
    each: &mut Vec<Binding>,
    problems: &mut Problems,
) {
    let mut shared = false;
    if let Type::Reference(reference) = bare(&argument.ty) {
        match reference.mutability {
            Some(_) => unique(up_to_mut(reference), problems),
            None => shared = true,
        }
    }
    let whole = match &*argument.pat {
        Pat::Ident(ident) if ident.subpat.is_none() => Some(argument.ty.span()),
        _ => None,
    };
    let cfgs = argument.attrs.iter().filter(|attribute| attribute.path().is_ident("cfg"));
    let attributes: Vec<_> = cfgs.cloned().collect();
    let mut names = Names { found: Vec::new() };
    names.visit_pat_mut(&mut argument.pat);
    for PatIdent { by_ref, mutability, ident, .. } in names.found {
        if by_ref.is_some() && mutability.is_some() {
            unique(quote!(#by_ref #mutability), problems);
            continue;
        }
        let name = ident.to_string();
        // A unit struct or a constant in a pattern looks the same; only a variable is small.
        if name.starts_with(char::is_uppercase) || unused(&name, body) {
            continue;
        }
        let span = whole.unwrap_or_else(|| ident.span());
        let shared = by_ref.is_some() || (shared && whole.is_some());
        each.push(Binding { attributes: attributes.clone(), mutability, ident, shared, span });
    }
}

/// An argument that is only held, such as a guard, need not be cloned.
fn unused(name: &str, body: &TokenStream) -> bool {
    name.starts_with('_') && !mentions(body, name)
}

/// The name as a word, or in a string: `format!("{_name}")`.
fn mentions(tokens: &TokenStream, name: &str) -> bool {
    tokens.clone().into_iter().any(|token| match token {
        TokenTree::Ident(ident) => ident == name,
        TokenTree::Group(group) => mentions(&group.stream(), name),
        TokenTree::Literal(literal) => literal.to_string().contains(name),
        TokenTree::Punct(_) => false,
    })
}

/// Finds a pattern's variables, and takes their `mut`.
struct Names {
    found: Vec<PatIdent>,
}

impl VisitMut for Names {
    fn visit_pat_ident_mut(&mut self, pattern: &mut PatIdent) {
        self.found.push(pattern.clone());
        if pattern.by_ref.is_none() {
            pattern.mutability = None;
        }
        visit_mut::visit_pat_ident_mut(self, pattern);
    }
}

/// What the function's `Result` says of its body.
pub(crate) struct Returns {
    /// Where it is written.
    pub(crate) at: Span,
    /// The body's type.
    pub(crate) body: TokenStream,
    /// Value and error, unless an alias hides the error.
    pub(crate) types: Option<(Type, Type)>,
    /// The policy's error is made into the function's own, which is written here.
    pub(crate) error_is_made: Option<Span>,
}

impl Returns {
    pub(super) fn new(signature: &Signature) -> Result<Self> {
        let ReturnType::Type(_, ty) = &signature.output else {
            return Err(Error::new_spanned(&signature.ident, NO_RESULT));
        };
        let written = bare(ty);
        let Some(mut types) = types_of_result(written) else {
            return Err(Error::new_spanned(ty, not_a_result(written)));
        };
        for ty in &mut types {
            Unnamed::default().visit_type_mut(ty);
        }
        let mut body = written.clone();
        Unnamed::default().visit_type_mut(&mut body);
        let body = body.into_token_stream();
        let at = written.span();
        Ok(match <[Type; 2]>::try_from(types) {
            Ok([value, error]) => match inside_call_error(&error) {
                Some(inside) => Self {
                    at,
                    body: quote!(::core::result::Result<#value, #inside>),
                    types: Some((value, inside)),
                    error_is_made: None,
                },
                None => {
                    let error_is_made = Some(error.span());
                    Self { at, body, types: Some((value, error)), error_is_made }
                }
            },
            Err(_) => Self { at, body, types: None, error_is_made: Some(at) },
        })
    }
}

const NO_RESULT: &str = "this function returns no `Result`, so it cannot say that an attempt failed: \
                         write `-> Result<T, E>`";

fn not_a_result(ty: &Type) -> String {
    let last = last_segment(ty).map(|(name, _)| name.to_string()).unwrap_or_default();
    let future = matches!(ty, Type::ImplTrait(_)) || matches!(&*last, "Pin" | "BoxFuture");
    if future {
        "this function returns a future: write `async fn` and `-> Result<T, E>`; a method of \
         `async_trait` can call such a function"
            .to_owned()
    } else if last.ends_with("Result") {
        format!(
            "`{last}` may be an alias of `Result`, but what its error is cannot be seen from here: \
                 write `Result<T, E>` out"
        )
    } else {
        NO_RESULT.to_owned()
    }
}

/// The types between the brackets of a `Result`; one or none if it is an alias.
fn types_of_result(ty: &Type) -> Option<Vec<Type>> {
    let (name, arguments) = last_segment(ty)?;
    (name == "Result").then(|| types_in(arguments)).filter(|types| types.len() <= 2)
}

/// The `E` of `CallError<E>`.
fn inside_call_error(ty: &Type) -> Option<Type> {
    let (name, arguments) = last_segment(bare(ty))?;
    let mut types = types_in(arguments);
    types.pop().filter(|_| name == "CallError" && types.is_empty())
}

fn last_segment(ty: &Type) -> Option<(&Ident, &PathArguments)> {
    let Type::Path(path) = ty else { return None };
    let Path { segments, .. } = &path.path;
    segments.last().map(|segment| (&segment.ident, &segment.arguments))
}

fn types_in(arguments: &PathArguments) -> Vec<Type> {
    let PathArguments::AngleBracketed(arguments) = arguments else { return Vec::new() };
    let types = arguments.args.iter().filter_map(|argument| match argument {
        GenericArgument::Type(ty) => Some(ty.clone()),
        _ => None,
    });
    types.collect()
}

/// Without parentheses, and without the invisible ones of `macro_rules`.
fn bare(ty: &Type) -> &Type {
    match ty {
        Type::Group(group) => bare(&group.elem),
        Type::Paren(paren) => bare(&paren.elem),
        _ => ty,
    }
}

/// `impl Trait` has no name inside the function: there it is inferred.
#[derive(Default)]
struct Unnamed {
    found: bool,
}

/// Whether there is an `impl Trait` in what a function returns.
pub(crate) fn names_impl(output: &ReturnType) -> bool {
    let mut unnamed = Unnamed::default();
    unnamed.visit_return_type_mut(&mut output.clone());
    unnamed.found
}

impl VisitMut for Unnamed {
    fn visit_type_mut(&mut self, ty: &mut Type) {
        if matches!(ty, Type::ImplTrait(_)) {
            self.found = true;
            *ty = syn::parse_quote!(_);
        } else {
            visit_mut::visit_type_mut(self, ty);
        }
    }
}
