//! Who waits until a backend has room.

use std::{cell::RefCell, collections::VecDeque, rc::Rc, time::Duration};

use tokio::{sync::Notify, time::timeout};

/// How often the first one looks although nobody here has left: at another worker somebody may have.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Those who wait for a backend: first come, first served.
#[derive(Debug, Default)]
pub struct Queue(RefCell<VecDeque<Rc<Notify>>>);

impl Queue {
    /// How many wait.
    pub fn len(&self) -> u32 {
        self.0.borrow().len() as u32
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A place at the end; none if so many wait already.
    pub fn enter(&self, most: u32) -> Option<Place<'_>> {
        if self.len() >= most {
            return None;
        }
        let called = Rc::new(Notify::new());
        self.0.borrow_mut().push_back(called.clone());
        Some(Place { queue: self, called })
    }

    /// There may be room.
    pub fn call(&self) {
        if let Some(first) = self.0.borrow().front() {
            first.notify_one();
        }
    }

    /// Not everybody may want to wait any longer.
    pub fn call_all(&self) {
        self.0.borrow().iter().for_each(|it| it.notify_one());
    }
}

/// How a wait has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    Come,
    /// There is nothing to wait for any more.
    Never,
}

/// A place in a queue.
pub struct Place<'a> {
    queue: &'a Queue,
    called: Rc<Notify>,
}

impl Place<'_> {
    /// Waits until it is this one's turn and there is room, for as long as it `stays`.
    pub async fn turn(&self, stays: impl Fn() -> bool, has_room: impl Fn() -> bool) -> Turn {
        loop {
            if !stays() {
                return Turn::Never;
            }
            let is_first =
                self.queue.0.borrow().front().is_some_and(|it| Rc::ptr_eq(it, &self.called));
            match is_first {
                true if has_room() => return Turn::Come,
                true => _ = timeout(LOOK_EVERY, self.called.notified()).await,
                false => self.called.notified().await,
            }
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.queue.0.borrow_mut().retain(|it| !Rc::ptr_eq(it, &self.called));
        self.queue.call();
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[tokio::test]
    async fn first_come_first_served_and_no_more_than_there_are_places() {
        let (queue, room) = (Queue::default(), Cell::new(0));
        let order = RefCell::new(Vec::new());
        let take = || room.get() > 0;
        let wait = async |name: &'static str| {
            let place = queue.enter(3).unwrap();
            assert_eq!(place.turn(|| true, take).await, Turn::Come);
            room.set(room.get() - 1);
            order.borrow_mut().push(name);
        };
        let (a, b) = (wait("a"), wait("b"));
        let gone = async {
            let place = queue.enter(3).unwrap();
            assert!(queue.enter(3).is_none(), "there are three");
            assert!(timeout(Duration::from_millis(5), place.turn(|| true, take)).await.is_err());
            drop(place);
            assert_eq!(queue.len(), 2);
            room.set(2);
            queue.call();
        };
        tokio::join!(a, b, gone);
        assert_eq!(*order.borrow(), ["a", "b"]);
        assert!(queue.is_empty());
    }

    #[tokio::test]
    async fn wherever_they_stand_they_leave_when_they_are_called_and_do_not_stay() {
        let (queue, stays) = (Queue::default(), Cell::new(true));
        let wait = async |stays_anyhow: bool| {
            let place = queue.enter(3).unwrap();
            let turn = place.turn(|| stays_anyhow || stays.get(), || false);
            timeout(LOOK_EVERY / 4, turn).await.ok()
        };
        let call = async {
            stays.set(false);
            queue.call_all();
        };
        let (first, second, ()) = tokio::join!(wait(true), wait(false), call);
        assert_eq!((first, second), (None, Some(Turn::Never)));
        assert!(queue.is_empty());
    }
}
