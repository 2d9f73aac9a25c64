// 64 MiB to the worker without a copy: a loan is filled where the worker will look at it.
#include <chrono>
#include <iostream>

#include <tr_mmap/tr_mmap.hpp>

int main() {
    try {
        tr::PythonSession session("default", "loan_cpp");
        session.start();
        session.wait_until_ready(30'000);

        const tr::Shape shape(4096, 4096);
        tr::Tensor loan = session.empty<float>(shape);
        loan.fill(0.25f);
        const auto start = std::chrono::steady_clock::now();
        session.send_tensor(loan, "frame");
        const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - start;
        std::cout << "sent " << loan.nbytes() / (1 << 20) << " MiB, copied " << session.stats().copied_nbytes
                  << " bytes" << std::endl;
        std::cerr << "sending took " << took.count() << " ms\n";

        std::cout << "sum: " << session.fetch_tensor("sum frame", 60'000).item<float>() << std::endl;

        // A loan that was sent belongs to its readers. Whatever was received does too: clone() what you want to change.
        std::cout << "can still be written: " << (loan.is_writable() ? "yes" : "no") << std::endl;
        const tr::Tensor square = session.fetch_tensor("square frame", 60'000);
        tr::Tensor mine = square.clone();
        mine.data<float>()[0] = -1;
        std::cout << "theirs " << square.data<float>()[0] << ", mine " << mine.data<float>()[0] << std::endl;
    } catch (const tr::TRException& error) {
        std::cerr << error.what() << std::endl;
        return 1;
    }
}
