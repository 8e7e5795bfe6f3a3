//! The macros of `plugin-api`.
//!
//! They generate plain code against `plugin_api::__private`. Their error messages use the terms of the author's own
//! code.

mod described;
mod fault;
mod mind;
mod perspective;
mod service;

use proc_macro::TokenStream;

/// Makes the methods of an `impl` block callable by clients. Nothing else of the type is.
///
/// * `fn look(&self, …)` and `fn change(&mut self, …)` run to their end without interruption, one at a time.
/// * `async fn wait(me: Handle<Self>, …)` may wait. It uses `me.read(…)` and `me.write(…)` in between.
/// * Arguments are owned types that serde can read; an `Option` may be absent. A parameter `&Call` (`Call` in an
///   async method), `&Context<Service>` or, in a plain method, `&Handle<Self>` (the object's own handle) is injected
///   and is not an argument.
/// * `#[raises(Full)]` before a method tells clients which of the service's own errors (`#[derive(Fault)]`) it
///   returns.
/// * `#[method("getSimple")]` before a method sets the name that clients call.
/// * `#[rest] more: Vec<T>` receives the remaining positional arguments (Python's `*more`),
///   `#[rest] named: HashMap<String, T>` the remaining keywords (Python's `**named`).
/// * A method returns a type that serde can write, or a `Result` of one.
///
/// Doc comments are copied into the manifest, which `credhost describe` shows.
#[proc_macro_attribute]
pub fn perspective(attribute: TokenStream, item: TokenStream) -> TokenStream {
    perspective::expand(attribute.into(), item.into()).unwrap_or_else(syn::Error::into_compile_error).into()
}

/// Turns a struct into an error that clients trap by its class, and whose fields they can read.
///
/// * `#[fault(class = "shop.Full")]` is its class. The name of a Python builtin makes it that builtin.
/// * `message = "only {left} are left"` is its message, which may contain its fields. Without it the message is
///   empty.
/// * `parents = ["LookupError", "shop.Error"]` are its parent classes, the nearest first. Without it, the parent is
///   Twisted's `pb.Error`.
/// * `instance` sends it as an instance of its class: only for clients that know it (see `Fault::as_instance`).
///
/// The struct must be `Serialize`. `Err(Full { left: 3 }.into())` returns it, and so does `Err(Full { left: 3 })?`.
/// In Twisted: `failure.trap("shop.Full")`, then `failure.left`.
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

/// Describes a type's fields for `credhost describe` and for the clients that it generates. See
/// `plugin_api::Described`. Names are as serde writes them; doc comments are copied.
#[proc_macro_derive(Described, attributes(serde))]
pub fn described(item: TokenStream) -> TokenStream {
    described::expand(item.into()).unwrap_or_else(syn::Error::into_compile_error).into()
}

/// Turns a trait into the type of an object that clients pass. The client implements the methods; the service calls
/// them.
///
/// * `fn heard(&self, who: &str, text: &str);` notifies the client and does not wait. It returns `Result<()>`: an
///   error if the arguments could not be serialized.
/// * `async fn ask(&self, text: &str) -> Result<bool>;` waits for the client's answer.
/// * `#[method("goOn")]` before a method sets the client's name for it.
///
/// The macro replaces the trait with a struct of the same name, which is made from what a client passes:
/// `let ear: Ear = attachment.mind_as()?`, an argument `ear: Ear`, or `Ear::from(remote)`. With
/// `#[service("chat", mind = Ear)]`, `credhost describe` shows it.
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

/// Completes an `impl Service for …` block: `#[service("name")]`.
///
/// After the name, separated by commas: `save = "call"` (default), `"detach"` or `"never"`; `shared`, if the
/// service's own state is to be saved; `needs = ["other"]`, `permissions = ["net:tcp:443"]`,
/// `copyables = ["module.Class"]`; `mind = Ear`, the `#[mind]` trait of the object that clients pass.
///
/// The attribute provides these methods if they are absent: `init` (the type's `Default`), `start`, `stop`,
/// `perspective` (the perspective's `Default`), `attached`, `detached`, `health`, `rebuild`, `migrate`,
/// `migrate_shared`. The doc comment of the block becomes the service's.
#[proc_macro_attribute]
pub fn service(attribute: TokenStream, item: TokenStream) -> TokenStream {
    service::expand(attribute.into(), item.into()).unwrap_or_else(syn::Error::into_compile_error).into()
}

/// Rejects a method that is compiled conditionally. Methods are described by their position, so such a method would
/// shift the others.
///
/// # Errors
/// If the method has a `cfg` or `cfg_attr` attribute.
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

/// A type as an author would write it.
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
