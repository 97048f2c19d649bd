//! The model as a picture: a function of the model and the size of the screen.

mod capture;
mod contexts;
mod frame;
mod over;
mod paint;
mod processes;

pub(super) use frame::draw;
pub(super) use paint::Paint;

#[cfg(test)]
mod tests;
