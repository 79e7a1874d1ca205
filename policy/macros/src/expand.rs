//! One visible call of the policy.

use crate::{
    parse::Function,
    validate::{Binding, Bindings, Call, Jitter, Settings, names_impl},
};
use proc_macro2::{Ident, Span, TokenStream};
use quote::{ToTokens, quote, quote_spanned};
use std::time::Duration;

/// The function, with a call of its policy for a body.
///
/// Names are those of this macro (`mixed_site`), and the static stands in a block of its own: the
/// body sees none of them.
pub(crate) fn function(root: &str, call: &Call, function: &Function) -> TokenStream {
    let here = Span::mixed_site();
    let root_at = |span| {
        let root = Ident::new(root, span);
        quote_spanned!(span=> ::#root)
    };
    let root = root_at(here);
    let Call { settings, bindings: Bindings { signature, each }, returns } = call;
    let Function { attributes, visibility, inner_attributes, .. } = function;

    let held = held_policy(&root, settings);
    let types = returns.types.as_ref().map(|(value, error)| quote!(::<#value, #error>));
    let idempotent = settings.idempotent.map(|it| quote_spanned!(here=> .idempotent(#it)));
    let retry_if = settings.retry_if.as_ref().map(|it| quote_spanned!(here=> .retry_if(#it)));
    let classify =
        settings.classify.unwrap_or_default().then(|| quote_spanned!(here=> .by_classify()));
    let copies = each.iter().map(copy);
    let typed = &returns.body;
    // What the compiler says of types should point to what the user wrote.
    let at_body = here.located_at(function.brace.span.join());
    let at_type = here.located_at(returns.at);
    let call = if signature.asyncness.is_some() {
        // Typed as the body of an `async fn` is, by a return that is never made.
        let body = function.body_after(quote_spanned! {at_type=>
            if let ::core::option::Option::Some(typed) = ::core::option::Option::<#typed>::None {
                return typed;
            }
        });
        let attempt = quote_spanned!(at_body=> async move #body);
        quote_spanned!(here=> .call(move || { #(#copies)* #attempt }).await)
    } else {
        let body = function.body_after(copies.collect());
        quote_spanned!(here=> .call_blocking(move || -> #typed #body))
    };
    let convert = returns.error_is_made.map(|at_error| {
        let at_error = here.located_at(at_error);
        let root = root_at(at_error);
        quote_spanned!(at_error=> .map_err(|error| {
            #root::__private::OfCall::of_call(error, policy, operation)
        }))
    });
    quote_spanned! {here=>
        #(#attributes)*
        #visibility #signature {
            #(#inner_attributes)*
            let (policy, operation) = #held;
            policy.operation #types (operation) #idempotent #retry_if #classify #call #convert
        }
    }
}

/// The function's one policy, and the operation's name.
fn held_policy(root: &TokenStream, settings: &Settings) -> TokenStream {
    let here = Span::mixed_site();
    let (name, variant) = (settings.kind.name(), settings.kind.variant());
    let variant = Ident::new(variant, here);
    let (marker, operation, dependency) = match &settings.operation_name {
        Some(operation) => {
            let dependency = format!("{name}:{operation}");
            (None, quote_spanned!(here=> #operation), quote_spanned!(here=> #dependency))
        }
        None => {
            let operation = quote_spanned!(here=> #root::__private::path_of(here));
            let format = format!("{name}:{{}}");
            let dependency = quote_spanned!(here=> ::std::format!(#format, #operation));
            (Some(quote_spanned!(here=> fn here() {})), operation, dependency)
        }
    };
    let dependency = match &settings.dependency {
        Some(dependency) => quote_spanned!(here=> #dependency),
        None => dependency,
    };
    let setters = setters(root, settings);
    quote_spanned! {here=> {
        #marker
        static POLICY: ::std::sync::LazyLock<#root::Policy> = ::std::sync::LazyLock::new(|| {
            #root::Policy::builder(#root::Kind::#variant, #dependency)
                #setters
                .build_or_defaults()
        });
        (&*POLICY, #operation)
    }}
}

fn setters(root: &TokenStream, settings: &Settings) -> TokenStream {
    let here = Span::mixed_site();
    let mut setters = TokenStream::new();
    let mut set = |name: &str, value: Option<TokenStream>| {
        let name = Ident::new(name, here);
        setters.extend(value.map(|value| quote_spanned!(here=> .#name(#value))));
    };
    let duration = |duration: Duration| {
        let (seconds, nanoseconds) = (duration.as_secs(), duration.subsec_nanos());
        quote_spanned!(here=> ::core::time::Duration::new(#seconds, #nanoseconds))
    };
    let jitter = |jitter: Jitter| {
        let jitter = Ident::new(jitter.variant(), here);
        quote_spanned!(here=> #root::Jitter::#jitter)
    };
    set("timeout", settings.timeout.map(duration));
    set("deadline", settings.deadline.map(duration));
    set("max_attempts", settings.max_attempts.map(ToTokens::into_token_stream));
    set("base_delay", settings.base_delay.map(duration));
    set("max_delay", settings.max_delay.map(duration));
    set("exponential_base", settings.exponential_base.map(ToTokens::into_token_stream));
    set("jitter", settings.jitter.map(jitter));
    set("failure_threshold", settings.failure_threshold.map(ToTokens::into_token_stream));
    set("recovery_timeout", settings.recovery_timeout.map(duration));
    set("enable_timeout", settings.enable_timeout.map(ToTokens::into_token_stream));
    set("enable_retry", settings.enable_retry.map(ToTokens::into_token_stream));
    let breaker = settings.enable_circuit_breaker.map(ToTokens::into_token_stream);
    set("enable_circuit_breaker", breaker);
    setters
}

/// The attempt's own copy of an argument.
fn copy(binding: &Binding) -> TokenStream {
    let Binding { attributes, mutability, ident, shared, span } = binding;
    match (shared, mutability) {
        // Every attempt captures the reference itself.
        (true, None) => TokenStream::new(),
        (true, Some(_)) => quote!(#(#attributes)* let #mutability #ident = #ident;),
        (false, _) => {
            let copy = quote_spanned!(*span=> ::core::clone::Clone::clone(&#ident));
            quote!(#(#attributes)* let #mutability #ident = #copy;)
        }
    }
}

impl Function {
    /// The body's block, with `first` before what stands in it.
    fn body_after(&self, first: TokenStream) -> TokenStream {
        let body = &self.body;
        let mut block = TokenStream::new();
        self.brace.surround(&mut block, |inside| inside.extend(quote!(#first #body)));
        block
    }
}

/// The function without its body, so that an error in the attribute is the only one.
pub(crate) fn stub(function: &Function) -> TokenStream {
    let Function { attributes, visibility, signature, .. } = function;
    if names_impl(&signature.output) {
        return TokenStream::new(); // Only a body can say what it is.
    }
    quote! {
        #(#attributes)*
        #[allow(unused, clippy::all, clippy::pedantic)]
        #visibility #signature {
            ::core::unreachable!()
        }
    }
}
