//! `#[perspective]`.

use proc_macro2::TokenStream;
use quote::{format_ident, quote, quote_spanned};
use syn::punctuated::Punctuated;
use syn::spanned::Spanned;
use syn::{Error, FnArg, GenericArgument, ImplItem, ItemImpl, LitStr, Pat, PathArguments, Result, ReturnType, Type};

use crate::described::{leaves, probes};

pub(crate) fn expand(attribute: TokenStream, item: TokenStream) -> Result<TokenStream> {
    if !attribute.is_empty() {
        return Err(Error::new(attribute.span(), "#[perspective] takes nothing: write #[perspective]"));
    }
    let mut block: ItemImpl = syn::parse2(item)
        .map_err(|error| Error::new(error.span(), format!("#[perspective] stands before an `impl` block: {error}")))?;
    if let Some(of) = &block.trait_ {
        let message = "#[perspective] stands before an `impl` block of the type itself, not of a trait";
        return Err(Error::new(of.0.span(), message));
    }
    if !block.generics.params.is_empty() {
        return Err(Error::new(block.generics.span(), "a perspective is one type, without parameters of its own"));
    }
    let me = &block.self_ty;
    let mut errors: Option<Error> = None;
    let mut methods = Vec::new();
    for item in &mut block.items {
        let method = match item {
            ImplItem::Fn(method) => Words::take(method).and_then(|words| Method::of(method, &words, methods.len())),
            other => Err(Error::new(
                other.span(),
                "a #[perspective] block has methods only; put this in another `impl` block",
            )),
        };
        match method {
            Ok(method) => methods.push(method),
            Err(error) => match &mut errors {
                Some(errors) => errors.combine(error),
                None => errors = Some(error),
            },
        }
    }
    if let Some(errors) = errors {
        return Err(errors);
    }
    for (index, method) in methods.iter().enumerate() {
        if methods[..index].iter().any(|other| other.name == method.name) {
            return Err(Error::new(method.at, format!("two methods are called {}", method.name)));
        }
    }
    let name = crate::shown(me);
    let doc = crate::doc(&block.attrs);
    let manifests = methods.iter().map(|method| &method.manifest);
    let arms = methods.iter().map(|method| &method.arm);
    let mut found = Vec::new();
    methods.iter().flat_map(|method| &method.types).for_each(|kind| leaves(kind, &mut found));
    let (probes, raised) = (probes(&found), methods.iter().flat_map(|method| &method.raises));
    Ok(quote! {
        #block

        impl ::plugin_api::Callable for #me {
            const METHODS: &'static [::plugin_api::__private::Method] = &[#(#manifests),*];
            const NAME: &'static str = #name;
            const DOC: &'static str = #doc;

            fn describe(into: &mut ::plugin_api::__private::Descriptions) {
                #probes
                #( <#raised as ::plugin_api::__private::Raises>::describe(into); )*
            }

            fn invoke(
                me: &::plugin_api::Handle<Self>,
                incoming: ::plugin_api::__private::Incoming<'_>,
            ) -> ::plugin_api::__private::Invoked {
                match incoming.method() {
                    #(#arms)*
                    _ => incoming.no_such_method::<Self>(),
                }
            }
        }
    })
}

/// What this macro's own attributes say about a method. They are removed, because they belong to no other macro.
struct Words {
    /// The name that clients call: `#[method("getSimple")]`.
    name: Option<LitStr>,
    /// The positions of parameters that take all remaining arguments: `#[rest]`.
    rest: Vec<usize>,
    /// The errors that it declares: `#[raises(Full)]`.
    raises: Vec<syn::Path>,
}

impl Words {
    fn take(method: &mut syn::ImplItemFn) -> Result<Self> {
        let mut words = Self { name: None, rest: Vec::new(), raises: Vec::new() };
        for attribute in method.attrs.iter().filter(|of| of.path().is_ident("raises")) {
            let named = attribute.parse_args_with(Punctuated::<syn::Path, syn::Token![,]>::parse_terminated);
            words.raises.extend(named.map_err(|error| {
                Error::new(error.span(), "write #[raises(Full)]: types of errors, each with #[derive(Fault)]")
            })?);
        }
        method.attrs.retain(|of| !of.path().is_ident("raises"));
        let (own, others) = std::mem::take(&mut method.attrs).into_iter().partition(|of| of.path().is_ident("method"));
        method.attrs = others;
        let own: Vec<syn::Attribute> = own;
        for attribute in own {
            let name: LitStr = attribute.parse_args().map_err(|error| {
                Error::new(error.span(), "write #[method(\"name\")]: the name by which clients call it")
            })?;
            if name.value().is_empty() {
                return Err(Error::new(name.span(), "a method has a name"));
            }
            words.name = Some(name);
        }
        for (index, input) in method.sig.inputs.iter_mut().enumerate() {
            let FnArg::Typed(argument) = input else { continue };
            let before = argument.attrs.len();
            argument.attrs.retain(|of| !of.path().is_ident("rest"));
            if argument.attrs.len() < before {
                words.rest.push(index);
            }
        }
        Ok(words)
    }
}

struct Method {
    name: String,
    at: proc_macro2::Span,
    manifest: TokenStream,
    arm: TokenStream,
    /// The types that it takes and returns.
    types: Vec<Type>,
    raises: Vec<syn::Path>,
}

#[derive(PartialEq)]
enum Receiver {
    Look,
    Change,
    Handle,
}

impl Method {
    fn of(method: &syn::ImplItemFn, words: &Words, index: usize) -> Result<Self> {
        crate::no_cfg(&method.attrs)?;
        let signature = &method.sig;
        let refuse = |at: proc_macro2::Span, message: &str| Err(Error::new(at, message));
        if !signature.generics.params.is_empty() {
            return refuse(signature.generics.span(), "a method that clients call has no type parameters");
        }
        let waits = signature.asyncness.is_some();
        let mut inputs = signature.inputs.iter();
        let receiver = receiver(inputs.next(), waits, signature)?;
        let mut parameters = Vec::new();
        let mut takes = Vec::new();
        let mut passed = Vec::new();
        let mut before = Vec::new();
        let mut wants_call = false;
        let mut types = Vec::new();
        for (place, input) in inputs.enumerate() {
            let FnArg::Typed(argument) = input else { continue };
            let Pat::Ident(pattern) = &*argument.pat else {
                return refuse(argument.pat.span(), "an argument needs a name: clients may give it by that");
            };
            let name = plain_name(&pattern.ident);
            let local = format_ident!("argument_{}", pattern.ident);
            match special(&argument.ty) {
                Some(Special::Call { borrowed }) => {
                    wants_call = true;
                    if borrowed && waits {
                        return refuse(argument.ty.span(), "an async method takes `call: Call`, not a borrowed one");
                    }
                    passed.push(if borrowed { quote!(&call) } else { quote!(call.clone()) });
                }
                Some(Special::Context { service, borrowed }) => {
                    if borrowed && waits {
                        return refuse(
                            argument.ty.span(),
                            "an async method takes `context: Context<…>`, not a borrowed one",
                        );
                    }
                    before.push(quote! {
                        let #local = match incoming.context::<#service>() {
                            ::core::result::Result::Ok(context) => context,
                            ::core::result::Result::Err(fault) => {
                                return ::plugin_api::__private::Invoked::Done(::core::result::Result::Err(fault));
                            }
                        };
                    });
                    passed.push(if borrowed { quote!(&#local) } else { quote!(#local.clone()) });
                }
                Some(Special::Me) if receiver == Receiver::Handle => {
                    return refuse(argument.ty.span(), "an async method has it already: `me`, its first parameter");
                }
                Some(Special::Me) => passed.push(quote!(me)),
                // `place` does not count the receiver.
                None if words.rest.contains(&(place + 1)) => {
                    let (star, take) = rest(&argument.ty)?;
                    let (kind, shown) = (&argument.ty, crate::shown(&argument.ty));
                    types.push((**kind).clone());
                    let name = format!("{star}{name}");
                    parameters.push(quote!(::plugin_api::__private::Parameter { name: #name, r#type: #shown }));
                    takes.push(quote_spanned!(kind.span()=> let #local: #kind = arguments.#take::<#kind>()?;));
                    passed.push(quote!(#local));
                }
                None => {
                    if let Type::Reference(reference) = &*argument.ty {
                        let message =
                            "an argument is owned, for it comes from outside: String, not &str; Vec<T>, not &[T]";
                        return refuse(reference.span(), message);
                    }
                    let kind = &argument.ty;
                    types.push((**kind).clone());
                    let shown = crate::shown(kind);
                    parameters.push(quote!(::plugin_api::__private::Parameter { name: #name, r#type: #shown }));
                    // If serde cannot read the type, the compiler reports it there.
                    takes.push(quote_spanned!(kind.span()=> let #local: #kind = arguments.take::<#kind>()?;));
                    passed.push(quote!(#local));
                }
            }
        }
        let name = words.name.as_ref().map_or_else(|| plain_name(&signature.ident), LitStr::value);
        let at = words.name.as_ref().map_or_else(|| signature.ident.span(), LitStr::span);
        let ident = &signature.ident;
        let doc = crate::doc(&method.attrs);
        let (returns, fallible) = match &signature.output {
            ReturnType::Default => (String::new(), false),
            ReturnType::Type(_, kind) => {
                types.push((**kind).clone());
                (crate::shown(kind), is_result(kind))
            }
        };
        let changes = receiver != Receiver::Look;
        let raises = words.raises.clone();
        let manifest = quote! {
            ::plugin_api::__private::Method {
                name: #name,
                doc: #doc,
                parameters: &[#(#parameters),*],
                returns: #returns,
                changes: #changes,
                raises: &[#(<#raises as ::plugin_api::__private::Raises>::CLASS),*],
            }
        };
        let question = fallible.then(|| quote!(?));
        let manifest_at = quote!(&<Self as ::plugin_api::Callable>::METHODS[#index]);
        let call = wants_call.then(|| quote!(let call = incoming.call();));
        let body = match receiver {
            Receiver::Look | Receiver::Change => {
                let run = if receiver == Receiver::Look { quote!(read) } else { quote!(write) };
                quote! {
                    incoming.#run(me, #manifest_at, |this, arguments, sink| {
                        #(#takes)*
                        arguments.end()?;
                        let answer = Self::#ident(this, #(#passed),*) #question;
                        sink.value(&answer)
                    })
                }
            }
            Receiver::Handle => {
                let about = if wants_call {
                    quote!(::core::option::Option::Some(call.clone()))
                } else {
                    quote!(::core::option::Option::None)
                };
                quote! {
                    let about = #about;
                    incoming.begin(#manifest_at, about, |arguments| {
                        #(#takes)*
                        arguments.end()?;
                        let me = me.clone();
                        ::core::result::Result::Ok(async move {
                            let answer = Self::#ident(me, #(#passed),*).await #question;
                            ::plugin_api::__private::encode(&answer)
                        })
                    })
                }
            }
        };
        Ok(Self { arm: quote!(#name => { #call #(#before)* #body }), name, at, manifest, types, raises })
    }
}

/// The name as clients spell it: `r#type` becomes `type`.
fn plain_name(ident: &syn::Ident) -> String {
    ident.to_string().trim_start_matches("r#").to_owned()
}

/// What a `#[rest]` parameter takes: a `Vec` takes the remaining positional arguments, a map the remaining keywords.
fn rest(kind: &Type) -> Result<(&'static str, syn::Ident)> {
    let (star, take) = match last(kind).map(|segment| segment.ident.to_string()).as_deref() {
        Some("Vec") => ("*", "rest"),
        Some("HashMap" | "BTreeMap") => ("**", "keywords"),
        _ => {
            let message = "#[rest] is a Vec<T>, for positional arguments, or a HashMap<String, T> or BTreeMap<String, T>, for keywords";
            return Err(Error::new(kind.span(), message));
        }
    };
    Ok((star, syn::Ident::new(take, kind.span())))
}

fn receiver(first: Option<&FnArg>, waits: bool, signature: &syn::Signature) -> Result<Receiver> {
    let name = &signature.ident;
    match first {
        Some(FnArg::Receiver(receiver)) if waits => Err(Error::new(
            receiver.span(),
            format!(
                "an async method must not borrow the perspective while it waits: write `async fn {name}(me: Handle<Self>, …)` and use `me.read(…)` and `me.write(…)`"
            ),
        )),
        Some(FnArg::Receiver(receiver)) => match shown_receiver(receiver) {
            "&self" => Ok(Receiver::Look),
            "&mut self" => Ok(Receiver::Change),
            _ => Err(Error::new(receiver.span(), "the perspective stays where it is: take `&self` or `&mut self`")),
        },
        Some(FnArg::Typed(argument)) if is_handle_of_self(&argument.ty) => {
            if waits {
                Ok(Receiver::Handle)
            } else {
                Err(Error::new(
                    argument.span(),
                    format!(
                        "only an async method takes `me: Handle<Self>`: write `async fn {name}`, or take `&self` or `&mut self`"
                    ),
                ))
            }
        }
        _ if waits => Err(Error::new(
            signature.span(),
            format!("an async method takes its perspective first: `async fn {name}(me: Handle<Self>, …)`"),
        )),
        _ => Err(Error::new(
            signature.span(),
            "a method that clients call takes `&self` or `&mut self`; put a helper in another `impl` block",
        )),
    }
}

fn shown_receiver(receiver: &syn::Receiver) -> &'static str {
    match crate::shown(receiver).as_str() {
        "&self" => "&self",
        "&mut self" => "&mut self",
        _ => "other",
    }
}

fn last(kind: &Type) -> Option<&syn::PathSegment> {
    match kind {
        Type::Path(path) => path.path.segments.last(),
        _ => None,
    }
}

fn is_handle_of_self(kind: &Type) -> bool {
    last(kind).is_some_and(|segment| {
        segment.ident == "Handle"
            && matches!(&segment.arguments, PathArguments::AngleBracketed(of)
                if matches!(of.args.first(), Some(GenericArgument::Type(of)) if crate::shown(of) == "Self"))
    })
}

pub(crate) fn is_result(kind: &Type) -> bool {
    last(kind).is_some_and(|segment| segment.ident == "Result")
}

enum Special {
    /// The object's own handle.
    Me,
    Call {
        borrowed: bool,
    },
    Context {
        service: Box<Type>,
        borrowed: bool,
    },
}

fn special(kind: &Type) -> Option<Special> {
    let (inner, borrowed) = match kind {
        Type::Reference(reference) => (&*reference.elem, true),
        other => (other, false),
    };
    let segment = last(inner)?;
    if borrowed && is_handle_of_self(inner) {
        return Some(Special::Me);
    }
    if segment.ident == "Call" {
        return Some(Special::Call { borrowed });
    }
    if segment.ident == "Context"
        && let PathArguments::AngleBracketed(of) = &segment.arguments
        && let Some(GenericArgument::Type(service)) = of.args.first()
    {
        return Some(Special::Context { service: Box::new(service.clone()), borrowed });
    }
    None
}
