//! What is said: messages to WeChat users out, WeChat's callback in
