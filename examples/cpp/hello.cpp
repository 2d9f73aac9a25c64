// The shortest use: ask the worker that ships with tr_mmap for a text.
#include <iostream>

#include <tr_mmap/tr_mmap.hpp>

int main() {
    try {
        tr::PythonSession session("default", "hello_cpp");
        session.start();
        session.wait_until_ready(30'000);
        std::cout << session.fetch_response("hello world") << std::endl;
    } catch (const tr::TRException& error) {
        std::cerr << error.what() << std::endl;
        return 1;
    }
}
