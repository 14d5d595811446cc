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
}

/// A place in a queue.
pub struct Place<'a> {
    queue: &'a Queue,
    called: Rc<Notify>,
}

impl Place<'_> {
    /// Waits until it is this one's turn and there is room.
    pub async fn turn(&self, has_room: impl Fn() -> bool) {
        loop {
            let is_first =
                self.queue.0.borrow().front().is_some_and(|it| Rc::ptr_eq(it, &self.called));
            match is_first {
                true if has_room() => return,
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
            place.turn(take).await;
            room.set(room.get() - 1);
            order.borrow_mut().push(name);
        };
        let (a, b) = (wait("a"), wait("b"));
        let gone = async {
            let place = queue.enter(3).unwrap();
            assert!(queue.enter(3).is_none(), "there are three");
            assert!(timeout(Duration::from_millis(5), place.turn(take)).await.is_err());
            drop(place);
            assert_eq!(queue.len(), 2);
            room.set(2);
            queue.call();
        };
        tokio::join!(a, b, gone);
        assert_eq!(*order.borrow(), ["a", "b"]);
        assert!(queue.is_empty());
    }
}
