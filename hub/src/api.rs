//! Async: what people and relays may ask, as warp filters. A rejection means only "not my path"; everything else is a value.

use std::sync::Arc;

use warp::{Filter, Rejection, Reply, filters::BoxedFilter, reject, reply::Response};

use crate::hub::Hub;
use problem::ApiError;

pub mod body;
pub mod capabilities;
pub mod check;
pub mod days;
pub mod deleted;
pub mod devices;
pub mod door;
pub mod login;
pub mod looks;
pub mod members;
pub mod openapi;
pub mod pictures;
pub mod policy;
pub mod problem;
pub mod relays;
pub mod routes;
pub mod shown;
pub mod summary;
pub mod sync;
pub mod time;

/// One or more paths, with their answers.
pub type Route = BoxedFilter<(Response,)>;

/// Everything at the web port.
pub fn web(hub: &Arc<Hub>) -> Route {
    let resources = [
        login::routes(hub),
        devices::routes(hub),
        days::routes(hub),
        pictures::routes(hub),
        capabilities::routes(hub),
        looks::routes(hub),
        members::routes(hub),
        relays::routes(hub),
        policy::routes(hub),
        summary::routes(hub),
        deleted::routes(hub),
        check::routes(hub),
    ];
    rooted(one_of(resources))
}

/// Everything at the mesh port.
pub fn mesh(hub: &Arc<Hub>) -> Route {
    rooted(one_of([sync::routes(hub), door::routes(hub), shown::routes(hub)]))
}

/// Everything at the door for those without a certificate.
pub fn door(hub: &Arc<Hub>) -> Route {
    rooted(door::routes(hub))
}

fn one_of(routes: impl IntoIterator<Item = Route>) -> Route {
    let nothing = warp::any().and_then(async || Err::<Response, _>(reject::not_found())).boxed();
    routes.into_iter().fold(nothing, |one, other| one.or(other).unify().boxed())
}

fn rooted(routes: Route) -> Route {
    routes.recover(recover).unify().with(warp::reply::with::header("x-content-type-options", "nosniff")).map(Reply::into_response).boxed()
}

async fn recover(rejection: Rejection) -> Result<Response, Rejection> {
    Ok(if rejection.is_not_found() {
        ApiError::NotFound.response()
    } else if rejection.find::<reject::MethodNotAllowed>().is_some() {
        ApiError::Method.response()
    } else {
        ApiError::Inside(format!("a rejection that nobody expected: {rejection:?}")).response()
    })
}
