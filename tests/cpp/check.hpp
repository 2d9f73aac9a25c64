// A test framework in one page: TEST registers a function, CHECK fails it, main runs those whose name begins as asked.
#pragma once

#include <functional>
#include <iostream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

struct Test {
    std::string name;
    std::function<void()> run;
};

inline std::vector<Test>& all_tests() {
    static std::vector<Test> tests;
    return tests;
}

struct Registrar {
    Registrar(const char* name, void (*run)()) { all_tests().push_back({name, run}); }
};

struct Failed : std::runtime_error {
    using std::runtime_error::runtime_error;
};

#define TEST(name)                                   \
    static void name();                              \
    static const Registrar registrar_##name(#name, name); \
    static void name()

#define CHECK(...)                                                                                     \
    do {                                                                                               \
        if (!(__VA_ARGS__)) throw Failed(std::string(__FILE__) + ":" + std::to_string(__LINE__) + ": " #__VA_ARGS__); \
    } while (false)

#define CHECK_EQUAL(a, b)                                                                              \
    do {                                                                                               \
        const auto left = (a);                                                                         \
        const auto right = (b);                                                                        \
        if (!(left == right)) {                                                                        \
            std::ostringstream text;                                                                   \
            text << __FILE__ << ":" << __LINE__ << ": " #a " is " << left << ", not " << right;        \
            throw Failed(text.str());                                                                  \
        }                                                                                              \
    } while (false)

/// The error that an action throws, which must be of that type.
template <class Error, class Action>
Error thrown_by(Action action) {
    try {
        action();
    } catch (const Error& error) {
        return error;
    }
    throw Failed("nothing was thrown");
}

int run_tests(const std::string& prefix);
