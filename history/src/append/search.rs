//! Circles, from the worst kind to the mildest.
//!
//! Each kind is a rule of which step may follow which. A circle by a rule is a strongly connected component of the graph
//! whose vertices are (vertex, last step), so that Tarjan's algorithm finds all of them in linear time, "no two
//! anti-dependencies in a row" included. In each component the shortest circle through a few of its vertices is told.
//!
//! | rule | steps | a circle by it is forbidden from |
//! |---|---|---|
//! | Writes | ww | read committed: G0 |
//! | Dependencies | and wr | read committed: G1c |
//! | Stale | and rw right behind a step of time | read committed in real time: what was there when it began was not seen |
//! | Skew | rw not behind rw | snapshot isolation: G-single, G-nonadjacent |
//! | All | rw anywhere | serializable: G2 |
//!
//! A component that shares transactions with a circle that is worse, or as bad with less of time's help, is not told again.

use std::collections::{HashMap, HashSet, VecDeque};

use super::graph::{Edge, Graph, Why};
use crate::{Anomaly, Kind, Order};

/// In a component so many vertices are tried for a short circle.
const STARTS_MAX: usize = 8;
/// Of one rule so many circles are told.
const CIRCLES_MAX: usize = 16;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rule {
    Writes,
    Dependencies,
    Stale,
    Skew,
    All,
}

const RULES: [Rule; 5] = [Rule::Writes, Rule::Dependencies, Rule::Stale, Rule::Skew, Rule::All];
const ORDERS: [Order; 3] = [Order::Data, Order::Process, Order::Realtime];

/// The last step, as far as rules ask for it.
const AFTER_DEPENDENCY: u32 = 0;
const AFTER_READ_WRITE: u32 = 1;
const AFTER_TIME: u32 = 2;
const STATES: u32 = 3;

fn order_of(why: Why) -> Order {
    match why {
        Why::Process => Order::Process,
        Why::Realtime => Order::Realtime,
        _ => Order::Data,
    }
}

/// A rule over a graph: which vertices of (vertex, last step) follow which.
struct Walk<'a> {
    graph: &'a Graph<'a>,
    rule: Rule,
    order: Order,
    /// Only among these.
    within: &'a [bool],
}

impl Walk<'_> {
    fn states(&self) -> u32 {
        if matches!(self.rule, Rule::Stale | Rule::Skew) { STATES } else { 1 }
    }

    fn len(&self) -> u32 {
        self.graph.len() as u32 * self.states()
    }

    fn vertex(&self, node: u32) -> u32 {
        node / self.states()
    }

    /// The `n`th step from here, if there are so many: where it leads, `None` if the rule forbids it.
    fn step(&self, node: u32, n: usize) -> Option<Option<(u32, Edge)>> {
        let edge = *self.graph.edges(self.vertex(node)).get(n)?;
        let last = node % self.states();
        let allowed = order_of(edge.why) <= self.order
            && self.within[edge.to as usize]
            && match edge.why {
                Why::WriteWrite | Why::Process | Why::Realtime => true,
                Why::WriteRead => self.rule >= Rule::Dependencies,
                Why::ReadWrite => match self.rule {
                    Rule::Writes | Rule::Dependencies => false,
                    Rule::Stale => last == AFTER_TIME,
                    Rule::Skew => last != AFTER_READ_WRITE,
                    Rule::All => true,
                },
            };
        let state = match edge.why {
            _ if self.states() == 1 => 0,
            Why::ReadWrite => AFTER_READ_WRITE,
            Why::Process | Why::Realtime => AFTER_TIME,
            Why::WriteWrite | Why::WriteRead => AFTER_DEPENDENCY,
        };
        Some(allowed.then_some((edge.to * self.states() + state, edge)))
    }

    /// Tarjan's components of more than one vertex, with a stack of its own.
    fn components(&self) -> Vec<Vec<u32>> {
        let mut tarjan = Tarjan::new(self.len() as usize);
        for root in 0..self.len() {
            if self.within[self.vertex(root) as usize] && tarjan.index[root as usize] == UNSEEN {
                tarjan.visit(self, root);
            }
        }
        tarjan.components
    }

    /// A short circle in a component.
    fn circle(&self, component: &[u32]) -> Vec<(u32, Edge)> {
        let members: HashSet<u32> = component.iter().copied().collect();
        let mut starts: Vec<u32> =
            component.iter().copied().filter(|&node| !self.graph.is_moment(self.vertex(node))).collect();
        starts.sort_unstable();
        let every = starts.len().div_ceil(STARTS_MAX).max(1);
        let circles = starts.iter().step_by(every).filter_map(|&start| self.shortest(start, &members));
        circles.min_by_key(Vec::len).unwrap_or_default()
    }

    /// The shortest way from a vertex to itself. What passes through moments of real time counts as one step.
    fn shortest(&self, start: u32, members: &HashSet<u32>) -> Option<Vec<(u32, Edge)>> {
        let mut came_from: HashMap<u32, (u32, Edge)> = HashMap::new();
        let mut settled: HashSet<u32> = HashSet::new();
        let mut queue = VecDeque::from([(start, None)]);
        while let Some((node, by)) = queue.pop_front() {
            if let Some(by) = by {
                if !settled.insert(node) {
                    continue;
                }
                came_from.insert(node, by);
                if node == start {
                    return Some(self.path(start, &came_from));
                }
            }
            for n in 0.. {
                let Some(step) = self.step(node, n) else { break };
                let Some((to, edge)) = step.filter(|(to, _)| members.contains(to) && !settled.contains(to)) else {
                    continue;
                };
                // Leaving a moment is free: the step was paid when real time was entered.
                match self.graph.is_moment(self.vertex(node)) {
                    true => queue.push_front((to, Some((node, edge)))),
                    false => queue.push_back((to, Some((node, edge)))),
                }
            }
        }
        None
    }

    fn path(&self, start: u32, came_from: &HashMap<u32, (u32, Edge)>) -> Vec<(u32, Edge)> {
        let mut steps = Vec::new();
        let mut node = start;
        loop {
            let (from, edge) = came_from[&node];
            if !self.graph.is_moment(self.vertex(from)) {
                steps.push((self.vertex(from), edge));
            }
            node = from;
            if node == start {
                break;
            }
        }
        steps.reverse();
        steps
    }
}

const UNSEEN: u32 = u32::MAX;

struct Tarjan {
    next: u32,
    index: Vec<u32>,
    low: Vec<u32>,
    on_stack: Vec<bool>,
    stack: Vec<u32>,
    components: Vec<Vec<u32>>,
}

impl Tarjan {
    fn new(len: usize) -> Tarjan {
        Tarjan {
            next: 0,
            index: vec![UNSEEN; len],
            low: vec![0; len],
            on_stack: vec![false; len],
            stack: Vec::new(),
            components: Vec::new(),
        }
    }

    fn enter(&mut self, node: u32) {
        self.index[node as usize] = self.next;
        self.low[node as usize] = self.next;
        self.next += 1;
        self.stack.push(node);
        self.on_stack[node as usize] = true;
    }

    fn visit(&mut self, walk: &Walk<'_>, root: u32) {
        self.enter(root);
        let mut calls: Vec<(u32, usize)> = vec![(root, 0)];
        while let Some((node, n)) = calls.last_mut() {
            let node = *node;
            match walk.step(node, *n) {
                Some(step) => {
                    *n += 1;
                    let Some((to, _)) = step else { continue };
                    if self.index[to as usize] == UNSEEN {
                        self.enter(to);
                        calls.push((to, 0));
                    } else if self.on_stack[to as usize] {
                        self.low[node as usize] = self.low[node as usize].min(self.index[to as usize]);
                    }
                }
                None => {
                    calls.pop();
                    if let Some((caller, _)) = calls.last() {
                        let low = self.low[node as usize];
                        self.low[*caller as usize] = self.low[*caller as usize].min(low);
                    }
                    self.leave(node);
                }
            }
        }
    }

    fn leave(&mut self, node: u32) {
        if self.low[node as usize] != self.index[node as usize] {
            return;
        }
        let from = self.stack.iter().rposition(|&other| other == node).expect("a root is on the stack");
        let component = self.stack.split_off(from);
        component.iter().for_each(|&member| self.on_stack[member as usize] = false);
        if component.len() > 1 {
            self.components.push(component);
        }
    }
}

/// All circles, worst first.
pub(super) fn cycles(graph: &Graph<'_>) -> Vec<Anomaly> {
    let everywhere = vec![true; graph.len()];
    let all = Walk { graph, rule: Rule::All, order: Order::Realtime, within: &everywhere };
    let components = all.components();
    // The usual case, and most of the graph in any case: no circle at all.
    let mut within = vec![false; graph.len()];
    components.iter().flatten().for_each(|&v| within[v as usize] = true);
    let mut anomalies = Vec::new();
    if components.is_empty() {
        return anomalies;
    }
    let mut told: Vec<(Rule, Order, HashSet<u32>)> = Vec::new();
    for order in ORDERS {
        for rule in RULES {
            let walk = Walk { graph, rule, order, within: &within };
            let mut circles = 0;
            for component in walk.components() {
                let is_told = told.iter().any(|(worse, less, members)| {
                    *worse <= rule && *less <= order && component.iter().any(|&n| members.contains(&walk.vertex(n)))
                });
                let circle = if is_told || circles == CIRCLES_MAX { Vec::new() } else { walk.circle(&component) };
                if circle.is_empty() {
                    continue;
                }
                circles += 1;
                told.push((rule, order, circle.iter().map(|&(v, _)| v).collect()));
                anomalies.push(anomaly(graph, &circle));
            }
        }
    }
    anomalies
}

/// What a circle is called says the circle itself, not the rule it was found by.
fn anomaly(graph: &Graph<'_>, circle: &[(u32, Edge)]) -> Anomaly {
    let order = circle.iter().map(|(_, edge)| order_of(edge.why)).max().unwrap_or(Order::Data);
    let why = |n: usize| circle[n % circle.len()].1.why;
    let anti: Vec<usize> = (0..circle.len()).filter(|&n| why(n) == Why::ReadWrite).collect();
    let before = |&n: &usize| why(n + circle.len() - 1);
    let kind = match anti.len() {
        0 if (0..circle.len()).any(|n| why(n) == Why::WriteRead) => Kind::G1c,
        0 => Kind::G0,
        _ if anti.iter().all(|n| order_of(before(n)) != Order::Data) => Kind::StaleRead,
        1 => Kind::GSingle,
        _ if anti.iter().all(|n| before(n) != Why::ReadWrite) => Kind::GNonadjacent,
        _ => Kind::G2,
    };
    Anomaly { kind, order, story: graph.tell(circle) }
}
