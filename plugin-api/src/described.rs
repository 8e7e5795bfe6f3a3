//! Descriptions of a service's types, in addition to the signatures of its methods: fields, objects, errors, and the
//! methods of clients' objects that it calls. `#[perspective]`, `#[derive(Described)]`, `#[derive(Fault)]` and
//! `#[mind]` collect them.

use std::marker::PhantomData;

use crate::manifest::{FaultManifest, Manifest, MethodManifest, MindManifest, ObjectManifest, TypeManifest};
use crate::service::{Callable, Service};

/// A type whose values clients send or receive, and whose fields `credhost describe` shows. Derive it.
///
/// ```
/// use plugin_api::prelude::*;
/// use plugin_api::Described;
///
/// #[derive(Default)]
/// struct Shop;
///
/// #[service("shop", save = "never")]
/// impl Service for Shop {
///     type Perspective = Counter;
/// }
///
/// /// One thing that is sold.
/// #[derive(Serialize, Described)]
/// struct Item {
///     /// What it is called.
///     name: String,
///     /// In cents.
///     #[serde(rename = "unitPrice")]
///     price: u32,
/// }
///
/// #[derive(Default)]
/// struct Counter;
///
/// #[perspective]
/// impl Counter {
///     fn items(&self) -> Vec<Item> {
///         Vec::new()
///     }
/// }
///
/// // What `credhost describe shop` shows.
/// let described = plugin_api::manifest::Manifest::of::<Shop>();
/// assert_eq!(described.types[0].fields[1].name, "unitPrice");
/// assert_eq!(described.types[0].fields[1].doc, "In cents.");
/// ```
pub trait Described {
    /// Adds the descriptions of this type and of the types of its fields.
    #[doc(hidden)]
    fn describe(into: &mut Descriptions);
}

/// An error that a method may return. Implemented by `#[derive(Fault)]`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not an error that clients can trap",
    label = "needs #[derive(Fault)]"
)]
pub trait Raises {
    /// Its class.
    #[doc(hidden)]
    const CLASS: &'static str;

    /// Adds the descriptions of this type and of the types of its fields.
    #[doc(hidden)]
    fn describe(into: &mut Descriptions);
}

/// An object that clients pass for callbacks. Implemented by `#[mind]`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not an object that clients pass for callbacks",
    label = "a trait with #[mind] is"
)]
pub trait MindType {
    /// Adds the description of this type.
    #[doc(hidden)]
    fn describe(into: &mut Descriptions);
}

/// The descriptions collected so far.
#[derive(Debug, Default)]
pub struct Descriptions {
    types: Vec<TypeManifest>,
    /// The full paths of these types, and of the types that are not described.
    kinds: Vec<&'static str>,
    /// Names that more than one of these types has.
    twice: Vec<String>,
    objects: Vec<ObjectManifest>,
    faults: Vec<FaultManifest>,
    mind: Option<MindManifest>,
    /// The name of the perspective, whose methods are listed separately.
    perspective: &'static str,
}

impl Descriptions {
    /// Adds a type of values, by its full path. Returns `false` if it is there already. If two types have the same
    /// short name, neither is described.
    #[doc(hidden)]
    pub fn data(&mut self, kind: &'static str, told: TypeManifest) -> bool {
        if self.kinds.contains(&kind) {
            return false;
        }
        self.kinds.push(kind);
        let same = |known: &TypeManifest| known.name == told.name;
        if self.twice.contains(&told.name) || self.types.iter().any(same) {
            self.types.retain(|known| !same(known));
            self.twice.push(told.name);
        } else {
            self.types.push(told);
        }
        true
    }

    /// Adds an error. Returns `false` if it is there already.
    #[doc(hidden)]
    pub fn fault(&mut self, told: FaultManifest) -> bool {
        let new = self.faults.iter().all(|known| known.class != told.class);
        if new {
            self.faults.push(told);
        }
        new
    }

    /// Adds a mind. Returns `false` if there is one already.
    #[doc(hidden)]
    pub fn mind(&mut self, told: MindManifest) -> bool {
        let new = self.mind.is_none();
        self.mind.get_or_insert(told);
        new
    }

    fn object<T: Callable>(&mut self) {
        if T::NAME == self.perspective || self.objects.iter().any(|known| known.name == T::NAME) {
            return;
        }
        let methods = T::METHODS.iter().map(MethodManifest::from).collect();
        self.objects.push(ObjectManifest { name: T::NAME.to_owned(), doc: T::DOC.to_owned(), methods });
        T::describe(self);
    }
}

impl Manifest {
    /// The manifest of a service.
    #[must_use]
    pub fn of<S: Service>() -> Self {
        let mut told = Descriptions { perspective: S::Perspective::NAME, ..Descriptions::default() };
        S::Perspective::describe(&mut told);
        S::describe(&mut told);
        let Descriptions { types, objects, faults, mind, .. } = told;
        let texts = |all: &[&str]| all.iter().map(|text| (*text).to_owned()).collect();
        Self {
            service: S::NAME.to_owned(),
            doc: S::DOC.to_owned(),
            save: S::SAVE.word().to_owned(),
            shared: S::SHARED,
            needs: texts(S::NEEDS),
            permissions: texts(S::PERMISSIONS),
            api: env!("CARGO_PKG_VERSION").to_owned(),
            perspective: S::Perspective::NAME.to_owned(),
            perspective_doc: S::Perspective::DOC.to_owned(),
            methods: S::Perspective::METHODS.iter().map(Into::into).collect(),
            types,
            objects,
            faults,
            mind,
        }
    }
}

/// Asks a type for its description, if it has one. Method resolution takes the method of the nearer trait ([`Near`],
/// [`NearObject`]) if its bounds hold, and that of the farther one ([`Far`]) otherwise.
#[derive(Debug)]
pub struct Probe<T: ?Sized>(PhantomData<T>);

impl<T: ?Sized> Probe<T> {
    #[doc(hidden)]
    #[must_use]
    pub fn new() -> Self {
        Self(PhantomData)
    }
}

/// Implemented for types that have a description.
pub trait Near {
    #[doc(hidden)]
    fn data(&self, into: &mut Descriptions);
}

/// Implemented for objects.
pub trait NearObject {
    #[doc(hidden)]
    fn object(&self, into: &mut Descriptions);
}

/// Implemented for all other types.
pub trait Far {
    #[doc(hidden)]
    fn data(&self, _: &mut Descriptions) {}
    #[doc(hidden)]
    fn object(&self, _: &mut Descriptions) {}
}

impl<T: Described> Near for Probe<T> {
    fn data(&self, into: &mut Descriptions) {
        T::describe(into);
    }
}

impl<T: Callable> NearObject for Probe<T> {
    fn object(&self, into: &mut Descriptions) {
        into.object::<T>();
    }
}

impl<T: ?Sized> Far for &Probe<T> {}

#[cfg(test)]
mod tests {
    use serde::Serialize;

    use crate::prelude::*;
    use crate::{Described, manifest::Manifest};

    #[derive(Default)]
    struct Shop;

    #[service("shop", save = "never", mind = Customer)]
    impl Service for Shop {
        type Perspective = Counter;
    }

    /// One thing that is sold.
    #[derive(Serialize, Deserialize, Described)]
    #[serde(rename_all = "camelCase")]
    struct Item {
        /// What it is called.
        name: String,
        unit_price: u32,
        #[serde(skip)]
        _shelf: u8,
        of: Vec<Part>,
    }

    #[derive(Serialize, Deserialize, Described)]
    struct Part {
        more: Option<Box<Self>>,
        size: Size,
    }

    #[derive(Serialize, Deserialize, Described)]
    #[serde(rename_all = "kebab-case")]
    enum Size {
        /// As large as a hand.
        VerySmall,
        Large,
    }

    #[derive(Serialize, Deserialize, Described)]
    #[serde(rename = "shop.Card")]
    struct Card {
        #[serde(rename = "type")]
        kind: String,
    }

    struct Untold;

    impl Serialize for Untold {
        fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
            serializer.serialize_unit()
        }
    }

    /// Too few are left.
    #[derive(Serialize, Fault)]
    #[fault(class = "shop.Full", message = "only {left} are left", parents = ["LookupError"])]
    struct Full {
        /// How many.
        left: u32,
    }

    mod customers {
        use super::Item;
        use crate::prelude::*;

        /// Who buys.
        #[mind]
        pub(super) trait Customer {
            /// It is there.
            fn arrived(&self, item: &Item);
            /// Whether to go on.
            #[method("goOn")]
            async fn go_on(&self, text: &str) -> Result<bool>;
        }
    }
    use customers::Customer;

    #[derive(Default)]
    struct Counter;

    #[perspective]
    impl Counter {
        #[raises(Full)]
        fn items(&self, among: Vec<Item>) -> Result<&'static [Untold]> {
            let _ = among;
            Ok(&[])
        }

        fn basket(&self, card: std::collections::HashMap<String, Card>) -> Handle<Basket> {
            let _ = card;
            Handle::new(Basket)
        }

        fn me(&self, me: &Handle<Self>) -> Handle<Self> {
            me.clone()
        }

        async fn greet(_me: Handle<Self>, call: Call) -> Result<bool> {
            let customer: Customer = call.attachment().mind_as()?;
            customer.arrived(&Item { name: "milk".to_owned(), unit_price: 5, _shelf: 0, of: Vec::new() })?;
            customer.go_on("more?").await
        }
    }

    struct Basket;

    /// What is to be bought.
    #[perspective]
    impl Basket {
        fn size(&self) -> Size {
            Size::Large
        }

        fn again(&self) -> Handle<Basket> {
            Handle::new(Basket)
        }
    }

    #[test]
    fn types_in_methods_are_described_once_by_their_wire_name() {
        let told = Manifest::of::<Shop>();
        let types: Vec<_> = told.types.iter().map(|of| (of.name.as_str(), of.class.as_str())).collect();
        assert_eq!(types, [("Item", ""), ("Part", ""), ("Size", ""), ("Card", "shop.Card")]);
        let fields = |at: usize| {
            let fields = told.types[at].fields.iter().map(|of| (of.name.as_str(), of.r#type.as_str(), of.doc.as_str()));
            fields.collect::<Vec<_>>()
        };
        let item = [("name", "String", "What it is called."), ("unitPrice", "u32", ""), ("of", "Vec<Part>", "")];
        assert_eq!(fields(0), item);
        assert_eq!(told.types[0].doc, "One thing that is sold.");
        assert_eq!(fields(3), [("type", "String", "")]);
        let sizes: Vec<_> = told.types[2].variants.iter().map(|of| (of.name.as_str(), of.doc.as_str())).collect();
        assert_eq!(sizes, [("very-small", "As large as a hand."), ("large", "")]);
        assert_eq!(told.methods[0].raises, ["shop.Full"]);
        let full = &told.faults[0];
        assert_eq!((full.class.as_str(), full.doc.as_str()), ("shop.Full", "Too few are left."));
        assert_eq!(
            (full.parents.as_slice(), full.fields[0].doc.as_str()),
            (&["LookupError".to_owned()][..], "How many.")
        );
        let objects: Vec<_> = told.objects.iter().map(|of| (of.name.as_str(), of.methods.len())).collect();
        assert_eq!(objects, [("Basket", 2)], "the perspective stands by itself");
        let mind = told.mind.unwrap();
        let calls: Vec<_> = mind.methods.iter().map(|of| of.signature.as_str()).collect();
        assert_eq!(calls, ["arrived(item: &Item)", "goOn(text: &str) -> Result<bool>"]);
        assert_eq!((mind.name.as_str(), mind.doc.as_str()), ("Customer", "Who buys."));
    }

    #[test]
    fn a_clients_mind_is_called_by_its_methods() {
        let host = crate::testing::TestHost::<Shop>::start().unwrap();
        let called = std::rc::Rc::new(std::cell::RefCell::new(Vec::new()));
        let calls = std::rc::Rc::clone(&called);
        let alice = host
            .attach_with("alice", move |method, arguments| {
                calls.borrow_mut().push(format!("{method}{arguments}"));
                Ok(Value::from(true))
            })
            .unwrap();
        assert!(alice.call::<bool>("greet", ()).unwrap());
        let said = called.borrow().join("; ");
        assert!(said.contains("arrived") && said.contains("milk") && said.contains("goOn"), "{said}");
        let bob = host.attach_with_value("bob", &5).unwrap();
        let said = bob.call::<bool>("greet", ()).unwrap_err().to_string();
        assert!(said.contains("mind"), "{said}");
    }

    /// Names are described as serde writes them.
    macro_rules! as_written {
        ($($case:literal)*) => {{
            $({
                #[allow(non_snake_case, reason = "a name that is odd in every way")]
                #[derive(Serialize, Described)]
                #[serde(rename_all = $case)]
                struct Fields {
                    unit_price: u8,
                    _shelf: u8,
                    a__b: u8,
                    r#type: u8,
                    #[serde(rename(serialize = "Out", deserialize = "In"))]
                    other: u8,
                    #[serde(skip_serializing_if = "Option::is_none")]
                    more: Option<u8>,
                }
                #[derive(Serialize, Described)]
                #[serde(rename_all = $case)]
                enum Variants {
                    VerySmall,
                    ABTest,
                    #[serde(rename = "x-y")]
                    Other,
                }
                #[derive(Serialize, Described)]
                #[serde(rename_all_fields = $case)]
                enum Inside {
                    One { unit_price: u8 },
                }
                let mut told = super::Descriptions::default();
                Fields::describe(&mut told);
                Variants::describe(&mut told);
                Inside::describe(&mut told);
                let fields = Fields { unit_price: 1, _shelf: 1, a__b: 1, r#type: 1, other: 1, more: Some(1) };
                let written = jelly::to_vec(&fields).and_then(|bytes| Value::decode(&bytes)).unwrap();
                let mut written: Vec<_> =
                    written.root().pairs().map(|(name, _)| name.as_text().unwrap().to_owned()).collect();
                let mut names: Vec<_> = told.types[0].fields.iter().map(|field| field.name.clone()).collect();
                written.sort();
                names.sort();
                assert_eq!(names, written, "{}", $case);
                for (at, variant) in [Variants::VerySmall, Variants::ABTest, Variants::Other].into_iter().enumerate() {
                    let written = jelly::to_vec(&variant).and_then(|bytes| Value::decode(&bytes)).unwrap();
                    assert_eq!(Some(told.types[1].variants[at].name.as_str()), written.root().as_text(), "{}", $case);
                }
                let written = jelly::to_vec(&Inside::One { unit_price: 1 }).and_then(|bytes| Value::decode(&bytes));
                let written = written.unwrap().to_string();
                assert!(written.contains(&told.types[2].variants[0].fields[0].name), "{}: {written}", $case);
            })*
        }};
    }

    #[test]
    fn names_are_described_as_serde_writes_them() {
        as_written!("lowercase" "UPPERCASE" "PascalCase" "camelCase" "snake_case" "SCREAMING_SNAKE_CASE" "kebab-case" "SCREAMING-KEBAB-CASE");
    }

    mod other {
        use serde::Serialize;

        use crate::Described;

        #[derive(Serialize, Described)]
        pub(super) struct Part {
            pub(super) strange: u8,
        }
    }

    #[derive(Serialize, Described)]
    struct Flat {
        own: u8,
        #[serde(flatten)]
        more: other::Part,
    }

    #[test]
    fn ambiguous_or_custom_serialized_types_are_not_described() {
        let mut told = super::Descriptions::default();
        Item::describe(&mut told);
        assert!(told.types.iter().any(|of| of.name == "Part"));
        other::Part::describe(&mut told);
        assert!(told.types.iter().all(|of| of.name != "Part"), "neither of the two");
        Part::describe(&mut told);
        assert!(told.types.iter().all(|of| of.name != "Part"));
        Flat::describe(&mut told);
        let flat = told.types.iter().find(|of| of.name == "Flat").unwrap();
        assert!(flat.fields.is_empty(), "its fields are those of another");
        let _ = Flat { own: 1, more: other::Part { strange: 1 } };
    }
}
