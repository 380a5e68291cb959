//! Which agents have which image, and paused containers of which.

use super::hash::Seed;
use super::members::Members;
use std::collections::HashMap;
use std::sync::Arc;

/// An image's number in a pool, as long as an agent of the pool lists it.
pub type ImageNumber = u32;

/// The agents of one image.
#[derive(Debug, Default)]
pub struct Agents {
    reference: Arc<str>,
    /// Who has it.
    pub have: Members,
    /// Who has a paused container for it.
    pub stock: Members,
    /// Lists of agents that it is in.
    lists: u32,
}

/// All images of a pool.
#[derive(Debug, Default)]
pub struct Images {
    numbers: HashMap<Arc<str>, ImageNumber, Seed>,
    agents: Vec<Agents>,
    vacant: Vec<ImageNumber>,
}

impl Images {
    /// Looks an image up by its canonical reference.
    pub fn find(&self, reference: &str) -> Option<ImageNumber> {
        self.numbers.get(reference).copied()
    }

    /// The agents of an image.
    #[inline]
    pub fn agents(&mut self, number: ImageNumber) -> &mut Agents {
        &mut self.agents[number as usize]
    }

    /// The number of an image that one more list is to have: [`Images::release`] takes it back.
    pub fn retain(&mut self, reference: &str) -> ImageNumber {
        let number = match self.numbers.get(reference) {
            Some(number) => *number,
            None => {
                let number = self.vacant.pop().unwrap_or_else(|| {
                    self.agents.push(Agents::default());
                    (self.agents.len() - 1) as ImageNumber
                });
                let reference: Arc<str> = reference.into();
                self.agents[number as usize].reference = reference.clone();
                self.numbers.insert(reference, number);
                number
            }
        };
        self.agents[number as usize].lists += 1;
        number
    }

    /// A list does without this image. The image is forgotten with its last list.
    pub fn release(&mut self, number: ImageNumber) {
        let agents = &mut self.agents[number as usize];
        agents.lists -= 1;
        if agents.lists == 0 {
            self.numbers.remove(&*agents.reference);
            *agents = Agents::default();
            self.vacant.push(number);
        }
    }

    /// The agent has it, or not.
    pub fn set_have(&mut self, number: ImageNumber, agent: u32, on: bool) {
        self.agents[number as usize].have.set(agent, on);
    }

    /// The agent has a paused container for it, or none.
    pub fn set_stock(&mut self, number: ImageNumber, agent: u32, on: bool) {
        self.agents[number as usize].stock.set(agent, on);
    }
}
