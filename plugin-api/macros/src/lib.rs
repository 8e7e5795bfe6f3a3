//! The two attributes of `plugin-api`.
//!
//! What they write is plain code against `plugin_api::__private`; what they refuse, they refuse in the words of the
//! person who wrote it.

mod described;
mod fault;
mod mind;
mod perspective;
mod service;

use proc_macro::TokenStream;

/// Makes the methods of an `impl` block callable by clients. Nothing else of the type is.
///
/// * `fn look(&self, …)` and `fn change(&mut self, …)` run to their end at once, one at a time.
/// * `async fn wait(me: Handle<Self>, …)` may wait; it uses `me.read(…)` and `me.write(…)` in between.
/// * Arguments are owned types that serde can read; an `Option` may be absent. A parameter `&Call` (`Call` in an async
///   method), `&Context<Service>` or, in a plain method, `&Handle<Self>` (the object's own handle) is filled in and is no
///   argument.
/// * `#[raises(Full)]` before a method tells clients which errors of the service's own (`#[derive(Fault)]`) it answers with.
/// * `#[method("getSimple")]` before a method is the name by which clients call it.
/// * `#[rest] more: Vec<T>` takes the positional arguments that are left (Python's `*more`), `#[rest] named: HashMap<String,
///   T>` the keywords (Python's `**named`).
/// * A method answers with a type that serde can write, or a `Result` of one.
///
/// Doc comments become the manifest, which `credhost describe` shows.
#[proc_macro_attribute]
pub fn perspective(attribute: TokenStream, item: TokenStream) -> TokenStream {
    perspective::expand(attribute.into(), item.into()).unwrap_or_else(syn::Error::into_compile_error).into()
}

/// Makes a struct an error that clients trap by its class, and whose fields they can read.
///
/// * `#[fault(class = "shop.Full")]` is its class; a Python builtin's name makes it one of those.
/// * `message = "only {left} are left"` is what it says, with its fields; without, it says nothing.
/// * `parents = ["LookupError", "shop.Error"]` are the classes that it is under, beside its own, the nearest first; without,
///   Twisted's `pb.Error`.
/// * `instance` sends it as an instance of its class: only for clients that know it (see `Fault::as_instance`).
///
/// The struct must be `Serialize`. `Err(Full { left: 3 }.into())` answers with it, and `Err(Full { left: 3 })?` as well. In
/// Twisted: `failure.trap("shop.Full")`, then `failure.left`.
///
/// ```ignore
/// use plugin_api::prelude::*;
///
/// #[derive(Serialize, Fault)]
/// #[fault(class = "shop.Full", message = "only {left} are left", parents = ["shop.Error", "LookupError"])]
/// struct Full {
///     left: u32,
/// }
///
/// let fault = Fault::from(Full { left: 3 });
/// assert_eq!((fault.class(), fault.message()), ("shop.Full", "only 3 are left"));
/// assert!(fault.is("shop.Error") && fault.is("LookupError"));
/// ```
#[proc_macro_derive(Fault, attributes(fault))]
pub fn fault(item: TokenStream) -> TokenStream {
    fault::expand(item.into()).unwrap_or_else(syn::Error::into_compile_error).into()
}

/// Describes a type's fields to `credhost describe` and to the clients that it writes: see `plugin_api::Described`. Names are as serde
/// writes them; doc comments are copied.
#[proc_macro_derive(Described, attributes(serde))]
pub fn described(item: TokenStream) -> TokenStream {
    described::expand(item.into()).unwrap_or_else(syn::Error::into_compile_error).into()
}

/// Makes a trait the type of an object that clients give: its methods are the client's, and this calls them.
///
/// * `fn heard(&self, who: &str, text: &str);` tells the client, and waits for nothing. It answers with `Result<()>`: whether the
///   arguments could be written.
/// * `async fn ask(&self, text: &str) -> Result<bool>;` waits for the client's answer.
/// * `#[method("goOn")]` before a method is the name by which the client has it.
///
/// The name of the trait becomes a struct, made of what a client gives: `let ear: Ear = attachment.mind_as()?`, an argument `ear:
/// Ear`, or `Ear::from(remote)`. `#[service("chat", mind = Ear)]` has `credhost describe` tell of it.
///
/// ```ignore
/// use plugin_api::prelude::*;
///
/// /// Who listens.
/// #[mind]
/// trait Ear {
///     /// Somebody has spoken.
///     fn heard(&self, who: &str, text: &str);
///     /// Whether they like it here.
///     async fn likes(&self) -> Result<bool>;
/// }
///
/// async fn greet(by: &Attachment) -> Result<bool> {
///     let ear: Ear = by.mind_as()?;
///     ear.heard("the room", "good day")?;
///     ear.likes().await
/// }
/// ```
#[proc_macro_attribute]
pub fn mind(attribute: TokenStream, item: TokenStream) -> TokenStream {
    mind::expand(attribute.into(), item.into()).unwrap_or_else(syn::Error::into_compile_error).into()
}

/// Makes an `impl Service for …` block complete: `#[service("name")]`.
///
/// After the name, separated by commas: `save = "call"` (default), `"detach"` or `"never"`; `shared`, if the service
/// itself has state that is to be saved; `needs = ["other"]`, `permissions = ["net:tcp:443"]`, `copyables = ["module.Class"]`;
/// `mind = Ear`, the `#[mind]` trait that clients give an object of.
///
/// Filled in where absent: `init` (the type's `Default`), `start`, `stop`, `perspective` (the perspective's
/// `Default`), `attached`, `detached`, `health`. The doc comment of the block becomes the service's.
#[proc_macro_attribute]
pub fn service(attribute: TokenStream, item: TokenStream) -> TokenStream {
    service::expand(attribute.into(), item.into()).unwrap_or_else(syn::Error::into_compile_error).into()
}

/// Methods are described by their position: one that is compiled only sometimes would shift the others.
///
/// # Errors
/// When it is there only under some condition.
fn no_cfg(attributes: &[syn::Attribute]) -> syn::Result<()> {
    match attributes.iter().find(|of| of.path().is_ident("cfg") || of.path().is_ident("cfg_attr")) {
        None => Ok(()),
        Some(cfg) => Err(syn::Error::new(
            syn::spanned::Spanned::span(cfg),
            "every method is described to clients: put #[cfg] on the whole block instead, and write one block for each case",
        )),
    }
}

/// The text of an item's doc comment.
fn doc(attributes: &[syn::Attribute]) -> String {
    let lines = attributes.iter().filter_map(|attribute| match &attribute.meta {
        syn::Meta::NameValue(pair) if pair.path.is_ident("doc") => match &pair.value {
            syn::Expr::Lit(syn::ExprLit { lit: syn::Lit::Str(text), .. }) => Some(text.value().trim().to_owned()),
            _ => None,
        },
        _ => None,
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// A type as a person would write it.
fn shown(tokens: &impl quote::ToTokens) -> String {
    let mut text = tokens.to_token_stream().to_string();
    for (spaced, tight) in [
        (" :: ", "::"),
        (" < ", "<"),
        ("< ", "<"),
        (" <", "<"),
        (" >", ">"),
        (" ,", ","),
        ("& ", "&"),
        ("( ", "("),
        (" )", ")"),
        ("[ ", "["),
        (" ]", "]"),
        (" ;", ";"),
    ] {
        text = text.replace(spaced, tight);
    }
    text
}
