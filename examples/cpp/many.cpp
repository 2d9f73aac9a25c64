// Many requests at once: all are sent before the first answer is taken, and the results come as futures.
#include <cstdint>
#include <future>
#include <iostream>
#include <string>
#include <vector>

#include <tr_mmap/tr_mmap.hpp>

int main() {
    try {
        tr::SessionOptions options;
        options.max_in_flight = 16;  // one more submit() waits until one of these is answered
        tr::PythonSession session("default", "many_cpp", false, options);
        session.start();
        session.wait_until_ready(30'000);

        std::vector<std::future<tr::Tensor>> sums;
        for (int frame = 0; frame < 100; ++frame) {
            tr::Tensor loan = session.empty<float>(tr::Shape(1000));
            loan.fill(static_cast<float>(frame));
            sums.push_back(session.submit("sum", loan, 20'000));
        }
        std::future<std::string> greeting = session.submit_response("hello many");

        std::int64_t all = 0;
        for (std::future<tr::Tensor>& sum : sums) all += static_cast<std::int64_t>(sum.get().item<float>());
        std::cout << "100 sums: " << all << "\n" << greeting.get() << std::endl;

        try {
            session.submit("dance").get();  // whatever the request fails with is thrown here
        } catch (const tr::UnknownCommand& error) {
            std::cout << "unknown: " << error.command << std::endl;
        }
    } catch (const tr::TRException& error) {
        std::cerr << error.what() << std::endl;
        return 1;
    }
}
