//! Who the user is: WeChat logins in, wxhub sessions out
