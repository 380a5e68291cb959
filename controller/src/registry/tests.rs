use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

fn key() -> PoolKey {
    PoolKey { namespace: "default".into(), pool: "default-pool".into() }
}

fn holder(uid: impl std::fmt::Display) -> Holder {
    Holder { uid: uid.to_string().into(), generation: 1 }
}

fn facts(capacity: u32) -> AgentFacts {
    AgentFacts { capacity, images: vec!["busybox".into()], ..Default::default() }
}

fn place(registry: &Registry, uid: u32, ports: &[u16]) -> Result<Reservation, NoPlace> {
    let ports = ports.iter().copied().collect();
    registry.place(&key(), &Wanted { image: "busybox", ports: &ports, holder: &holder(uid), except: &[] })
}

#[test]
fn placements_spread_over_the_agents() {
    let registry = Registry::default();
    let names: Vec<Arc<str>> = (0..1000).map(|number| format!("agent-{number}").into()).collect();
    names.iter().for_each(|name| registry.report(name, &key(), &facts(0)));
    let held: Vec<_> = (0..10_000).map(|uid| place(&registry, uid, &[]).unwrap()).collect();
    let most = names.iter().map(|name| registry.used(name)).max().unwrap();
    let least = names.iter().map(|name| registry.used(name)).min().unwrap();
    // Two random choices: the fullest is log log n above the mean of 10; with one it would have more than 20. How few the
    // emptiest has is chance: one agent in 300,000 is not drawn more than three times.
    assert!(most <= 16 && least >= 1, "{least}..{most}");
    drop(held);
    assert!(names.iter().all(|name| registry.used(name) == 0));
}

#[test]
fn a_small_pool_and_the_few_that_have_the_image_are_used_evenly() {
    let registry = Registry::default();
    let names: Vec<Arc<str>> = (0..10_000).map(|number| format!("agent-{number}").into()).collect();
    for (number, name) in names.iter().enumerate() {
        let images = if number < 100 { vec!["busybox".into()] } else { vec![] };
        registry.report(name, &key(), &AgentFacts { images, ..Default::default() });
    }
    let _held: Vec<_> = (0..1000).map(|uid| place(&registry, uid, &[]).unwrap()).collect();
    let used: Vec<_> = names[..100].iter().map(|name| registry.used(name)).collect();
    assert!(used.iter().all(|used| (1..=16).contains(used)), "{used:?}");

    let two = Registry::default();
    two.report(&"a".into(), &key(), &facts(0));
    two.report(&"b".into(), &key(), &facts(0));
    let _held: Vec<_> = (0..7).map(|uid| place(&two, uid, &[]).unwrap()).collect();
    assert_eq!(two.used("a").abs_diff(two.used("b")), 1);
}

#[test]
fn the_last_free_slot_of_many_agents_is_found() {
    let registry = Registry::default();
    for number in 0..10_000 {
        registry.report(&format!("agent-{number}").into(), &key(), &facts(1));
    }
    let held: Vec<_> = (0..10_000).map(|uid| place(&registry, uid, &[80]).unwrap()).collect();
    assert_eq!(place(&registry, 10_000, &[]).unwrap_err(), NoPlace::Full { capacity: 10_000, used: 10_000 });
    drop(held);
    drop(place(&registry, 1, &[]).unwrap());
}

#[test]
fn a_free_port_is_found_on_the_only_agent_that_has_it() {
    let registry = Registry::default();
    for number in 0..2000 {
        registry.report(&format!("agent-{number}").into(), &key(), &facts(0));
    }
    let mut held: Vec<_> = (0..2000).map(|uid| place(&registry, uid, &[8080]).unwrap()).collect();
    assert_eq!(
        place(&registry, 9999, &[8080, 1]).unwrap_err(),
        NoPlace::PortsTaken { port: Some(8080), ports: BTreeSet::from([1, 8080]) }
    );
    let freed = held.swap_remove(1234).agent().unwrap();
    assert_eq!(place(&registry, 9999, &[8080, 1]).unwrap().agent(), Some(freed));
}

#[test]
fn a_better_class_wins_over_a_less_loaded_agent() {
    let registry = Registry::default();
    let with = |images: &[&str], stock: &[(&str, u32)]| AgentFacts {
        images: images.iter().map(|image| image.to_string()).collect(),
        stock: stock.iter().map(|(image, paused)| (image.to_string(), *paused)).collect(),
        ..Default::default()
    };
    registry.report(&"none".into(), &key(), &with(&[], &[]));
    registry.report(&"image".into(), &key(), &with(&["docker.io/library/busybox:latest"], &[]));
    registry.report(&"stock".into(), &key(), &with(&["busybox"], &[("busybox:latest", 2)]));
    let classes: Vec<_> = (0..4)
        .map(|uid| {
            let reservation = place(&registry, uid, &[]).unwrap();
            let found = (reservation.agent().unwrap().to_string(), reservation.class());
            std::mem::forget(reservation);
            found
        })
        .collect();
    assert_eq!(classes[0], ("stock".into(), Class::Stock));
    assert_eq!(classes[1], ("stock".into(), Class::Stock));
    assert!(classes[2..].iter().all(|(_, class)| *class == Class::Image), "the stock is used up: {classes:?}");
    registry.set_healthy("image", false);
    registry.set_healthy("stock", false);
    assert_eq!(place(&registry, 9, &[]).unwrap().class(), Class::Any);
}

#[test]
fn a_reservation_on_an_agent_that_went_frees_nothing_of_the_next_one() {
    let registry = Registry::default();
    let name: Arc<str> = "agent".into();
    registry.report(&name, &key(), &facts(1));
    let old = place(&registry, 1, &[80]).unwrap();
    registry.remove(&name);
    assert!(matches!(place(&registry, 2, &[]), Err(NoPlace::NoSuchPool { .. })));
    registry.report(&name, &key(), &facts(1));
    let _new = place(&registry, 1, &[80]).unwrap();
    drop(old);
    assert_eq!(registry.used(&name), 1);
    assert!(place(&registry, 2, &[]).is_err());
}

#[test]
fn an_agent_that_refused_as_full_is_left_out_until_it_gives_a_sign() {
    let registry = Registry::default();
    let name: Arc<str> = "agent".into();
    registry.report(&name, &key(), &facts(5));
    registry.refused_full(&name);
    assert!(matches!(place(&registry, 1, &[]), Err(NoPlace::Full { .. })));
    registry.heartbeat(&name);
    drop(place(&registry, 1, &[]).unwrap());
}

#[test]
fn a_pool_is_a_namespaces_own() {
    let registry = Registry::default();
    registry.report(&"agent".into(), &PoolKey { namespace: "red".into(), pool: "p".into() }, &facts(0));
    let blue = PoolKey { namespace: "blue".into(), pool: "p".into() };
    let ports = BTreeSet::new();
    let wanted = Wanted { image: "busybox", ports: &ports, holder: &holder(1), except: &[] };
    assert!(matches!(registry.place(&blue, &wanted), Err(NoPlace::NoSuchPool { existing, .. }) if existing.is_empty()));
}

#[test]
fn why_there_is_no_place_is_said() {
    let registry = Registry::default();
    registry.report(&"agent".into(), &key(), &AgentFacts { cordoned: true, ..facts(1) });
    assert_eq!(place(&registry, 1, &[]).unwrap_err(), NoPlace::AllCordoned { agents: 1 });
    registry.set_healthy("agent", false);
    assert_eq!(place(&registry, 1, &[]).unwrap_err(), NoPlace::NoHealthyAgent);
    registry.report(&"agent".into(), &key(), &facts(0));
    let _a = place(&registry, 1, &[1]).unwrap();
    registry.report(&"second".into(), &key(), &facts(0));
    registry.occupied("second", &holder("b"), &BTreeSet::from([2]));
    let refusal = place(&registry, 3, &[1, 2]).unwrap_err();
    assert_eq!(refusal, NoPlace::PortsTaken { port: None, ports: BTreeSet::from([1, 2]) });
    assert!(refusal.to_string().contains("1, 2"));
}

#[test]
fn a_sandbox_that_is_reserved_and_reported_has_one_slot_and_its_ports_until_neither_is_left() {
    let registry = Registry::default();
    let ports = BTreeSet::from([80]);
    registry.report(&"agent".into(), &key(), &facts(2));
    let taken = |registry: &Registry| place(registry, 99, &[80]).is_err();
    for reservation_ends_first in [true, false] {
        let reservation = place(&registry, 1, &[80]).unwrap();
        registry.occupied("agent", &holder(1), &ports);
        assert_eq!(registry.used("agent"), 1);
        if reservation_ends_first {
            drop(reservation);
            assert!(registry.used("agent") == 1 && taken(&registry));
            registry.vacated("agent", &holder(1));
        } else {
            registry.vacated("agent", &holder(1));
            assert!(registry.used("agent") == 1 && taken(&registry));
            drop(reservation);
        }
        assert!(registry.used("agent") == 0 && !taken(&registry));
    }
    registry.occupied("agent", &holder(1), &BTreeSet::new());
    let again = [place(&registry, 1, &[]).unwrap(), place(&registry, 1, &[]).unwrap()];
    assert_eq!(registry.used("agent"), 1, "the holder has this slot already");
    registry.vacated("agent", &holder(1));
    assert_eq!(registry.used("agent"), 1);
    drop(again);
    assert_eq!(registry.pools()[0].1.used, 0);
}

#[test]
fn slots_that_were_given_back_are_free_for_whoever_looks_next() {
    let registry = Registry::default();
    registry.report(&"agent".into(), &key(), &facts(20));
    for held in 1..=20 {
        let mut reservations: Vec<_> = (0..held).map(|uid| place(&registry, uid, &[uid as u16 + 1]).unwrap()).collect();
        while reservations.pop().is_some() {
            if reservations.len() % 3 == 0 {
                assert_eq!(registry.used("agent"), reservations.len());
            }
        }
        assert_eq!(registry.pools()[0].1.used, 0);
        drop(place(&registry, 1, &[1, 2, 3, 4, 5, 6, 7, 8, 9]).unwrap());
    }
}

#[test]
fn the_stock_of_many_images_is_used_up_one_by_one() {
    let registry = Registry::default();
    let images: Vec<String> = (0..9).map(|number| format!("image-{number}:v1")).collect();
    let stock = images.iter().map(|image| (image.clone(), 3)).chain([("many:v1".into(), 100_000)]).collect();
    registry.report(&"agent".into(), &key(), &AgentFacts { stock, ..Default::default() });
    let class = |uid: u32, image: &str| {
        let ports = BTreeSet::new();
        let wanted = Wanted { image, ports: &ports, holder: &holder(uid), except: &[] };
        registry.place(&key(), &wanted).unwrap().class()
    };
    for image in &images {
        let classes: Vec<Class> = (0..5).map(|uid| class(uid, image)).collect();
        assert_eq!(classes, [Class::Stock, Class::Stock, Class::Stock, Class::Any, Class::Any], "{image}");
    }
    assert!((0..70_000).all(|uid| class(uid, "many:v1") == Class::Stock));
    registry.set_stock("agent", &[]);
    assert_eq!(class(1, "many:v1"), Class::Any);
}

/// What one agent is in the model.
#[derive(Debug, Clone, Default)]
struct Model {
    capacity: usize,
    healthy: bool,
    cordoned: bool,
    image: bool,
    stock: u32,
    reserved: BTreeMap<u32, BTreeSet<u16>>,
    reported: BTreeMap<u32, BTreeSet<u16>>,
}

impl Model {
    fn holders(&self) -> BTreeSet<u32> {
        self.reserved.keys().chain(self.reported.keys()).copied().collect()
    }

    fn ports(&self) -> BTreeSet<u16> {
        self.reserved.values().chain(self.reported.values()).flatten().copied().collect()
    }

    fn takes(&self, ports: &BTreeSet<u16>) -> bool {
        let room = self.capacity == 0 || self.holders().len() < self.capacity;
        self.healthy && !self.cordoned && room && self.ports().is_disjoint(ports)
    }

    fn class(&self) -> u8 {
        if self.stock > 0 { 0 } else { u8::from(!self.image) + 1 }
    }
}

#[derive(Debug, Clone)]
enum Op {
    Report { agent: u8, capacity: u8, cordoned: bool, image: bool, stock: u8, holders: Vec<(u8, Vec<u16>)> },
    Healthy(u8, bool),
    Place(Vec<u16>),
    Drop(prop::sample::Index),
    Occupied(u8, u8, Vec<u16>),
    Vacated(u8, u8),
}

fn ports() -> impl Strategy<Value = Vec<u16>> {
    prop::collection::vec(1u16..6, 0..3)
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        2 => (0u8..6, 0u8..4, any::<bool>(), any::<bool>(), 0u8..3, prop::collection::vec((200u8..205, ports()), 0..3))
            .prop_map(|(agent, capacity, cordoned, image, stock, holders)| Op::Report {
                agent, capacity, cordoned: cordoned && agent == 0, image, stock, holders
            }),
        1 => (0u8..6, any::<bool>()).prop_map(|(agent, healthy)| Op::Healthy(agent, healthy)),
        6 => ports().prop_map(Op::Place),
        3 => any::<prop::sample::Index>().prop_map(Op::Drop),
        1 => (0u8..6, 200u8..205, ports()).prop_map(|(agent, uid, ports)| Op::Occupied(agent, uid, ports)),
        1 => (0u8..6, 200u8..205).prop_map(|(agent, uid)| Op::Vacated(agent, uid)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn no_agent_gets_more_than_it_has_and_the_best_that_is_free_is_found(ops in prop::collection::vec(op(), 1..80)) {
        let registry = Registry::default();
        let mut models: BTreeMap<String, Model> = BTreeMap::new();
        let mut held: Vec<(Reservation, u32)> = Vec::new();
        let name = |agent: u8| format!("agent-{agent}");
        for (next_uid, op) in ops.into_iter().enumerate() {
            match op {
                Op::Report { agent, capacity, cordoned, image, stock, holders } => {
                    let holders: BTreeMap<u32, BTreeSet<u16>> =
                        holders.into_iter().map(|(uid, ports)| (uid.into(), ports.into_iter().collect())).collect();
                    let facts = AgentFacts {
                        capacity: capacity.into(),
                        cordoned,
                        images: if image { vec!["busybox".into()] } else { vec![] },
                        stock: vec![("busybox".into(), stock.into())],
                        holders: holders.iter().map(|(uid, ports)| (holder(uid), ports.clone())).collect(),
                    };
                    registry.report(&name(agent).into(), &key(), &facts);
                    let model = models.entry(name(agent)).or_default();
                    let before = std::mem::take(&mut model.reported);
                    *model = Model {
                        capacity: capacity.into(), healthy: true, cordoned, image, stock: stock.into(),
                        reserved: std::mem::take(&mut model.reserved), reported: holders,
                    };
                    // Ports that a holder had once stay its own as long as it holds.
                    for (uid, ports) in before {
                        if let Some(now) = model.reported.get_mut(&uid) { now.extend(ports) }
                    }
                }
                Op::Healthy(agent, healthy) => {
                    registry.set_healthy(&name(agent), healthy);
                    if let Some(model) = models.get_mut(&name(agent)) { model.healthy = healthy }
                }
                Op::Place(ports) => {
                    let uid = 10_000 + next_uid as u32;
                    let wanted: BTreeSet<u16> = ports.iter().copied().collect();
                    let best = models.values().filter(|model| model.takes(&wanted)).map(Model::class).min();
                    match place(&registry, uid, &ports) {
                        Ok(reservation) => {
                            let model = models.get_mut(&*reservation.agent().unwrap()).unwrap();
                            prop_assert!(model.takes(&wanted), "{model:?} takes {wanted:?}");
                            prop_assert_eq!(Some(model.class()), best);
                            prop_assert_eq!(reservation.class() as u8, model.class());
                            model.stock = model.stock.saturating_sub(1);
                            model.reserved.insert(uid, wanted);
                            held.push((reservation, uid));
                        }
                        Err(refusal) => prop_assert!(best.is_none(), "{refusal}, but {models:?}"),
                    }
                }
                Op::Drop(index) => {
                    if !held.is_empty() {
                        let (reservation, uid) = held.swap_remove(index.index(held.len()));
                        models.get_mut(&*reservation.agent().unwrap()).unwrap().reserved.remove(&uid);
                    }
                }
                Op::Occupied(agent, uid, ports) => {
                    let ports: BTreeSet<u16> = ports.into_iter().collect();
                    registry.occupied(&name(agent), &holder(uid), &ports);
                    if let Some(model) = models.get_mut(&name(agent)) {
                        model.reported.entry(uid.into()).or_default().extend(ports);
                    }
                }
                Op::Vacated(agent, uid) => {
                    registry.vacated(&name(agent), &holder(uid));
                    if let Some(model) = models.get_mut(&name(agent)) { model.reported.remove(&u32::from(uid)); }
                }
            }
            for (agent, model) in &models {
                prop_assert_eq!(registry.used(agent), model.holders().len());
            }
        }
        held.clear();
        for agent in models.keys() {
            for uid in 200..205 {
                registry.vacated(agent, &holder(uid));
            }
            prop_assert_eq!(registry.used(agent), 0, "counters do not drift");
        }
    }
}
