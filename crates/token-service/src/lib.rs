//! The sole owner and refresher of WeChat's access tokens and tickets
